"""Where a VM could live instead: other CPU sets of the same kind as its home, and wider ones.

A home is a cache group of one node, a node or everything, of one kind of CPU (performance or efficiency
cores), as placement has them. Where an admin, a small host or a pin made it narrower than a cache group,
other homes of the same size are made from the least loaded CPUs.
"""

from collections.abc import Iterable, Mapping

from pxsched.balance.sharing import mask_of
from pxsched.host.topology import Topology
from pxsched.value import NOTHING, Value


class Machine(Value):
    """The CPUs that shared VMs may use. levels: disjoint CPU masks, caches first, everything last.

    core_of: the mask of each CPU's core. busy: by CPU, the part of its time that no party uses.
    """

    pool: int
    levels: tuple[tuple[int, ...], ...]
    core_of: Mapping[int, int]
    topology: Topology
    busy: Mapping[int, float] = NOTHING

    @classmethod
    def of(cls, topology: Topology, pool: Iterable[int], busy: Mapping[int, float] = NOTHING) -> "Machine":
        pool_mask = mask_of(pool)
        nodes = [mask_of(node.cpus) for node in topology.nodes if node.cpus]
        caches = [
            cache & node for l3 in topology.l3s if (cache := mask_of(l3.cpus)) for node in nodes or [-1]
        ]
        kinds = _kinds(topology)
        levels: list[tuple[int, ...]] = []
        for tier in (caches, nodes, [mask_of(topology.online)]):
            masks = tuple(mask for wide in tier for kind in kinds if (mask := wide & kind & pool_mask))
            if masks and (not levels or set(masks) != set(levels[-1])):
                levels.append(masks)
        core_of = {cpu.id: mask_of(cpu.siblings or {cpu.id}) for cpu in topology.cpus.values()}
        return cls(pool_mask, tuple(levels), core_of, topology, busy)

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


def _kinds(topology: Topology) -> list[int]:
    """The CPUs of each kind; one mask of all where there is one kind only."""
    found: dict[object, int] = {}
    for cpu in topology.cpus.values():
        found[cpu.kind] = found.get(cpu.kind, 0) | 1 << cpu.id
    return list(found.values())


def _cpus(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _mean(mask: int, loads: Mapping[int, float]) -> float:
    return sum(loads.get(cpu, 0.0) for cpu in _cpus(mask)) / max(1, mask.bit_count())
