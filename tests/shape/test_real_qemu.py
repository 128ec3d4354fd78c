"""The topology that QEMU builds from our options is that of the CPUs the vCPUs are pinned to."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pxsched.host.processor import Processor
from pxsched.host.topology import Topology, read
from pxsched.placement.request import Host, Refused, Request, VmClass
from pxsched.placement.search import place
from pxsched.root import Root
from pxsched.settings.policy import Smt
from pxsched.shape import cpumodel, options
from pxsched.shape.cpumodel import Groups
from pxsched.shape.mirror import MOST_NODES, NoMirror
from pxsched.shape.picture import Picture, parts, seats, truth

from . import qemu
from .conftest import MILAN, XEON, changed, mirrored, needs_qemu

pytestmark = [pytest.mark.measures, needs_qemu]

# Models as TCG has them; under KVM the vendor of qemu64 is the host's, which `host` stands for.
MODELS = (
    ("EPYC-Milan", MILAN),
    ("EPYC-Rome-v2", MILAN),
    ("Skylake-Server", XEON),
    ("qemu64", XEON),
    ("qemu64", MILAN),
)
MOST = 48  # vCPUs, for QEMU's sake


def expressible(real: Picture) -> bool:
    """Tried without thinking: whether any numbers of threads and cores give these groups."""
    vcpus = range(len(real.cores))
    if len(set(real.nodes)) > MOST_NODES:
        return False
    return any(
        real.cores == parts(vcpu // threads for vcpu in vcpus)
        and real.l3s == parts(vcpu // (threads * cores) for vcpu in vcpus)
        for threads in range(1, len(vcpus) + 1)
        for cores in range(1, len(vcpus) + 1)
    )


def check(
    topology: Topology,
    cpus: Sequence[int],
    model: tuple[str, Processor],
    emulator: Sequence[str] = qemu.SYSTEMS,
) -> bool:
    """Whether these pins are mirrored; fails where QEMU builds anything else, or a wrong thing is refused."""
    vm = {"cores": str(len(cpus)), "memory": str(8 * len(cpus) + 64), "cpu": model[0]}
    real = truth(seats(topology, cpus))
    try:
        found, changes = mirrored(topology, cpus, vm, model[1])
    except NoMirror as refusal:
        assert not expressible(real), f"{cpus}: {refusal}"
        return False
    built, most = qemu.build(changed(vm, changes), emulator)
    told = options.read(changed(vm, changes))
    by_die = cpumodel.traits(told.model, model[1]).groups is Groups.DIES
    seen = Picture(
        parts(vcpu.core for vcpu in built),
        parts(vcpu.group if by_die else vcpu.socket for vcpu in built),
        parts(vcpu.node for vcpu in built),
    )
    assert (seen, most) == (real, found.smp.maxcpus), (cpus, changes)
    return True


def placements(topology: Topology, chance: random.Random, many: int) -> Iterator[tuple[int, ...]]:
    """CPUs that placement gives dedicated VMs, and some that no sense is in."""
    online = sorted(topology.online)
    for number in range(many):
        vcpus = chance.randint(2, max(2, min(len(online), MOST)))
        if number % 3 == 2:
            yield tuple(chance.sample(online, min(vcpus, len(online))))
            continue
        smt = chance.choice((Smt.PREFER, Smt.REQUIRE, Smt.ISOLATE, Smt.SHARE))
        request = Request(100, vcpus, 64, VmClass.DEDICATED, cores=vcpus, smt=smt)
        try:
            placed = place(Host(topology), (), request)
        except Refused:
            continue
        yield tuple(min(cpus) for cpus in placed.vcpus)


def machine(directory: Path) -> Topology:
    return read(Root(str(directory / "root")))


def test_what_qemu_builds_is_where_the_vcpus_run(machines):
    chance = random.Random(15)
    done = [
        check(topology, cpus, chance.choice(MODELS))
        for name in ("pepc-milan0", "nri-server-snc-pmem", "hwloc-16em64t-4s2c2t-offlines", "pepc-adl0")
        for topology in [machine(machines / name)]
        for cpus in placements(topology, chance, 6)
    ]
    assert 8 <= sum(done) < len(done), "some are mirrored, some refused"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("debian_13", "many"), [(False, 8), (True, 3)], ids=["system", "debian-13"])
def test_what_qemu_builds_is_where_the_vcpus_run_on_every_captured_machine(topologies, debian_13, many):
    emulator = qemu.debian_13s() if debian_13 else qemu.SYSTEMS
    if not emulator:
        pytest.skip("no image of the lab is there to take Debian 13's QEMU from")
    chance = random.Random(16)
    done = [
        check(topology, cpus, chance.choice(MODELS), emulator)
        for directory in sorted(topologies.glob("*/root"))
        for topology in [machine(directory.parent)]
        for cpus in placements(topology, chance, many)
    ]
    assert sum(done) > 12 * many
