"""Where a VM could live instead: other CPU sets of the same kind as its home, and wider ones.

A home is a cache group, a node or everything (design: classes of VM). Where an admin, a small host or a pin
made it narrower than a cache group, other homes of the same size are made from the least loaded CPUs.
"""

from collections.abc import Iterable, Mapping

from pxsched.balance.sharing import mask_of
from pxsched.host.topology import Topology
from pxsched.value import Value


class Machine(Value):
    """The CPUs that shared VMs may use. levels: disjoint CPU masks, caches first, everything last.

    core_of: the mask of each CPU's core. distance_of: the distances between the nodes of CPUs.
    """

    pool: int
    levels: tuple[tuple[int, ...], ...]
    core_of: Mapping[int, int]
    topology: Topology

    @classmethod
    def of(cls, topology: Topology, pool: Iterable[int]) -> "Machine":
        pool_mask = mask_of(pool)
        tiers = (
            [l3.cpus for l3 in topology.l3s],
            [node.cpus for node in topology.nodes],
            [topology.online],
        )
        levels: list[tuple[int, ...]] = []
        for tier in tiers:
            masks = tuple(mask for cpus in tier if (mask := mask_of(cpus) & pool_mask))
            if masks and (not levels or set(masks) != set(levels[-1])):
                levels.append(masks)
        core_of = {cpu.id: mask_of(cpu.siblings or {cpu.id}) for cpu in topology.cpus.values()}
        return cls(pool_mask, tuple(levels), core_of, topology)

    def alike(self, home: int, allowed: int, loads: Mapping[int, float]) -> list[int]:
        """Homes of the same kind, the least loaded first. loads: the others' demand on each CPU."""
        for level in self.levels:
            if home in (mask & allowed for mask in level):
                found = [mask & allowed for mask in level]
                break
        else:
            found = self._cut(home.bit_count(), allowed, loads)
        size = home.bit_count()
        found = [mask for mask in found if mask != home and mask.bit_count() * 2 > size]
        return sorted(found, key=lambda mask: (_mean(mask, loads), mask))

    def wider(self, home: int, allowed: int) -> list[int]:
        """The groups that contain `home` and more, the smallest first."""
        found = {mask & allowed: None for level in self.levels for mask in level}
        return sorted((m for m in found if m & home == home and m != home), key=int.bit_count)

    def _cut(self, size: int, allowed: int, loads: Mapping[int, float]) -> list[int]:
        """The `size` least loaded CPUs of every group that is large enough, groups as small as possible."""
        for level in self.levels:
            rooms = [mask & allowed for mask in level if (mask & allowed).bit_count() >= size]
            if rooms:
                return [mask_of(self._quietest(room, size, loads)) for room in rooms]
        return []

    def _quietest(self, room: int, size: int, loads: Mapping[int, float]) -> list[int]:
        """Least loaded first, of equals those with a quiet sibling; whole caches where it takes several."""
        cache: dict[int, float] = {}
        if self.levels and size > max(mask.bit_count() for mask in self.levels[0]):
            for mask in self.levels[0]:
                cache.update(dict.fromkeys(_cpus(mask), _mean(mask, loads)))

        def busy(cpu: int) -> tuple[float, float, float, int]:
            core = sum(loads.get(sibling, 0.0) for sibling in _cpus(self.core_of.get(cpu, 0)))
            return cache.get(cpu, 0.0), round(loads.get(cpu, 0.0), 6), round(core, 6), cpu

        return sorted(_cpus(room), key=busy)[:size]


def _cpus(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _mean(mask: int, loads: Mapping[int, float]) -> float:
    return sum(loads.get(cpu, 0.0) for cpu in _cpus(mask)) / max(1, mask.bit_count())
