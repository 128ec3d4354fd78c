"""VMs and machines to shape, and the way from options over the mirror to new options."""

import contextlib
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pxsched import cli
from pxsched.host.processor import Processor
from pxsched.host.topology import Topology
from pxsched.sandbox.commandline import Accelerator
from pxsched.sandbox.sandbox import Sandbox
from pxsched.shape import cpumodel, mirror, options, picture
from pxsched.shape.cpumodel import Traits
from pxsched.shape.mirror import Mirror
from pxsched.shaping import record

from . import machines

MILAN = Processor("AuthenticAMD", 0x19, 1, topoext=True)
XEON = Processor("GenuineIntel", 6, 106)

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed")


def traits_of(told: options.Told, host: Processor) -> Traits:
    return cpumodel.traits(told.model, host)


def mirrored(
    topology: Topology, cpus: Sequence[int], vm: Mapping[str, str], host: Processor = MILAN
) -> tuple[Mirror, options.Changes]:
    """The mirror of these pins, and what it changes. Raises NoMirror, Unreadable."""
    told = options.read(vm)
    options.check(vm, told)
    where = picture.seats(topology, cpus)
    found = mirror.mirror(
        topology, where, told.machine.memory_mib, options.page_mib(told.machine), traits_of(told, host)
    )
    return found, options.changes(vm, told, found)


def changed(vm: Mapping[str, str], changes: options.Changes) -> dict[str, str]:
    return {key: value for key, value in {**vm, **changes}.items() if value is not None}


HOOK = Path(__file__).parents[2] / "hooks/pxsched"
FOREIGN = "-device  pvpanic -rtc 'base=utc'"


@pytest.fixture(scope="module")
def home():
    """A node whose two CPUs are siblings of one core, whatever the real ones are."""
    with Sandbox(accelerator=Accelerator.TCG, most_vcpus=8) as sandbox:
        sandbox.snippet("pxsched", HOOK)
        base = Path(sandbox.root)
        _own_files(base, "sys")
        machines.write(base, nodes=1, l3s=1, cores=1)
        yield sandbox


def _own_files(base: Path, name: str) -> None:
    (base / name).unlink()
    (base / name).mkdir()


@pytest.fixture
def sandbox(home):
    home.qm(
        "create", 100, name="web", cores=2, memory=64, affinity="0,1", args=FOREIGN, numa=1,
        numa0="cpus=0,memory=32", numa1="cpus=1,memory=32", hookscript="local:snippets/pxsched",
        cpu="Skylake-Server", smbios1="uuid=01234567-89ab-cdef-0123-456789abcdef",
    )  # fmt: skip
    yield home
    home.qm("stop", 100, check=False)
    home.qm("destroy", 100)
    shutil.rmtree(Path(home.root, record.RECORDS.directory), ignore_errors=True)


def run(sandbox, *words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["--root", sandbox.root, *words])
    return code, out.getvalue(), err.getvalue()


def text(sandbox) -> str:
    return sandbox.node.config(100).read_text()
