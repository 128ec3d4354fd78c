"""A real Linux kernel, booted with what was written, sees the cores, caches and nodes that its vCPUs have.

Emulation has no topoext of its own, so AMD models force it; Intel models with several dies abort QEMU 10 when
Linux boots in emulation, and are not told of dies anyway.
"""

import pytest

from pxsched.errors import UserError
from pxsched.host.processor import Processor
from pxsched.sandbox import linux
from pxsched.shape.picture import parts, seats, truth

from . import guest
from .conftest import MILAN, XEON, changed, mirrored, needs_qemu
from .machines import machine

pytestmark = [needs_qemu, pytest.mark.slow, pytest.mark.timeout(900)]
# What emulation lacks of these models; left on, the guest would use it.
LACKING = (
    "pcid invpcid rdseed sha-ni rdpid fsrm fxsr-opt misalignsse 3dnowprefetch osvw perfctr-core clzero"
    " xsaveerptr wbnoinvd ibpb ibrs amd-stibp amd-ssbd nrip-save xsavec xsaves"
)
FORCED = ",".join(["x-force-features=on", *(f"-{flag}" for flag in LACKING.split())])


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    try:
        linux.files()
    except UserError as error:
        pytest.skip(f"no kernel for a Linux guest: {error}")


@pytest.mark.parametrize(
    ("name", "host", "cpus"),
    [
        ("EPYC-Milan", MILAN, (0, 16, 1, 17, 4, 20, 5, 21)),
        ("EPYC-Rome", MILAN, (0, 16, 1, 17, 8, 24, 9, 25)),
        ("EPYC-Milan", MILAN, (0, 1, 2, 3, 4, 5)),
        ("EPYC", MILAN, (0, 16, 1, 17)),
        ("qemu64", MILAN, (0, 16, 1, 17, 4, 20, 5, 21)),
        ("Skylake-Server", XEON, (0, 16, 1, 17, 8, 24, 9, 25)),
        ("Skylake-Server", XEON, (0, 1, 4, 5)),
    ],
)
def test_linux_sees_what_its_vcpus_have(name: str, host: Processor, cpus: tuple[int, ...]) -> None:
    topology = machine(distances={(0, 1): 32, (1, 0): 32})
    vm = {"cores": str(len(cpus)), "memory": "512", "cpu": name}
    _, changes = mirrored(topology, cpus, vm, host)
    vendor = ",vendor=AuthenticAMD" if name == "qemu64" else ""
    booted = changed(vm, changes) | {"cpu": f"{name},{FORCED}{vendor}" if host is MILAN else name}
    told = guest.sees(booted)
    seen = [told.cpus[vcpu] for vcpu in sorted(told.online)]
    real = truth(seats(topology, cpus))
    assert parts(cpu.core for cpu in seen) == real.cores
    assert parts(cpu.l3 for cpu in seen) == real.l3s
    assert parts(cpu.node for cpu in seen) == real.nodes
    if len(told.nodes) == 2:
        assert told.distance(0, 1) == told.distance(1, 0) == 32


def test_without_a_word_of_ours_linux_sees_no_siblings_and_one_cache() -> None:
    """What the others are compared with."""
    told = guest.sees({"cores": "8", "memory": "512", "cpu": "Skylake-Server"})
    assert len({cpu.core for cpu in told.cpus.values()}) == 8
    assert len({cpu.l3 for cpu in told.cpus.values()}) == 1
