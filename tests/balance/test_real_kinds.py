"""A guest as it is, for real: Debian's kernel that reads files, swaps to zram, or is not asked any
more.

Its first root is the sandbox's, with an agent that runs what it is told and modules for a disk and zram.
"""

import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pxsched.balance import need
from pxsched.errors import UserError
from pxsched.guest import balloon
from pxsched.guest.qmp import Qmp
from pxsched.sandbox import linux

from .conftest import Host

pytestmark = [
    pytest.mark.measures,
    pytest.mark.slow,
]

LOW, HIGH = 320, 768
SETTINGS = """
[node]
reserved_mib = 64
[defaults]
starved_mib = 40
wasteful_mib = 90
wasteful_percent = 25
starved_percent = 5
"""
# What the agent does besides.
RUN = 'run) eval "$first $second" >/dev/ttyS1 2>&1 </dev/null; echo "ok run $?" ;;\n        '
PROGRAMS = 10
# Every first run of a program on the disk reads its pages, and nothing else: no read-ahead.
READ_FILES = (
    "mkdir /disk; mount -t ext4 -o ro /dev/vda /disk; echo 0 >/sys/block/vda/queue/read_ahead_kb;"
    "(while [ ! -e /enough ]; do echo 1 >/proc/sys/vm/drop_caches;"
    " for one in /disk/busybox*; do $one true; cat $one >/dev/null; done; done) &"
)
# Memory of the group `early` can be pushed out to compressed swap while much is available (memory.reclaim of
# cgroup-v2.rst).
EARLY = "/sys/fs/cgroup/early"
SWAP_EARLY = (
    "touch /enough; echo 1 >/sys/block/zram0/reset; echo 256M >/sys/block/zram0/disksize",
    "mkswap /dev/zram0; swapon /dev/zram0",
    f"echo +memory >/sys/fs/cgroup/cgroup.subtree_control; mkdir -p {EARLY}",
    f"sh -c 'echo $$ >{EARLY}/cgroup.procs; for i in $(seq 40); do cat /pattern; done >/hold/early'",
)


@dataclass
class Real:
    """The host, and its guest 100. held_mib: what that was told to hold."""

    host: Host
    held_mib: int = 0

    def run(self, command: str) -> None:
        assert self.host.sandbox.guest(100).tell(f"run {command}") == "ok run 0", self.console()

    def reading(self) -> balloon.Reading:
        found = balloon.read(self.host.root, 100, patience_s=5.0)
        assert isinstance(found, balloon.Reading), found
        return found

    @property
    def size(self) -> int:
        return round(self.reading().actual_mib)

    def fill(self) -> None:
        """Nearly all that it has, a part at a time, so that its agent answers in time on a busy machine."""
        guest = self.host.sandbox.guest(100)
        left_mib = (int(guest.state()["memavailable_kib"]) >> 10) - 20
        while left_mib > 0:
            self.held_mib += min(left_mib, 32)
            left_mib -= 32
            guest.hold(self.held_mib)

    def ticks(self, condition, *, load=lambda: None, within_s=90.0) -> bool:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            load()
            self.host.tick(2.5)
        return True

    def console(self) -> str:
        return self.host.sandbox.node.own(100, "console").read_text("utf-8", "replace")[-1000:]

    def qom(self, command: str, **more) -> object:
        with Qmp(self.host.root, 100, patience_s=5.0) as qmp:
            return qmp.execute(
                command, {"path": balloon.DEVICE, "property": "guest-stats-polling-interval", **more}
            )


def first_root(path: Path, modules: dict[str, bytes]) -> Path:
    """The sandbox's first root with these modules."""
    init = (Path(linux.__file__).parent / "files/init").read_text()
    init = init.replace("state) state", f"{RUN}state) state").replace("</modules/order", "</modules/all")
    contents = {f"modules/{name}.ko": data for name, data in modules.items()}
    contents["modules/all"] = "".join(f"{name}.ko\n" for name in modules).encode()
    contents["init"] = init.encode()
    members = [linux._Member(name, stat.S_IFREG | 0o755, data) for name, data in contents.items()]
    members.append(linux._Member("TRAILER!!!", 0))
    packed = b"".join(linux._packed(member, 1000 + number) for number, member in enumerate(members))
    path.write_bytes(Path(linux.files()[1]).read_bytes() + packed)
    return path


def disk(directory: Path) -> Path:
    """A disk with programs."""
    programs = directory / "programs"
    programs.mkdir()
    for number in range(PROGRAMS):
        (programs / f"busybox{number}").write_bytes(linux._busybox())
        (programs / f"busybox{number}").chmod(0o755)
    path = directory / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext2", "-d", programs, path, "48M"], check=True)
    return path


@pytest.fixture(scope="module")
def real(shared_host, tmp_path_factory):
    try:
        linux.files()
    except UserError as error:
        pytest.skip(f"no kernel for a Linux guest: {error}")
    directory = tmp_path_factory.mktemp("files")
    kernel = linux._module_files(linux._kernel().modules)
    modules = linux._with_dependencies(kernel, (*linux._MODULES, "virtio_blk", "lzo_rle", "zram"))
    root = first_root(directory / "root.cpio", modules)
    shared_host.settings(SETTINGS)
    drive = f"file={disk(directory)},format=raw,if=none,readonly=on,id=programs"
    args = f"-initrd {root} -drive {drive} -device virtio-blk-pci,drive=programs"
    shared_host.start(100, guest="linux", memory=HIGH, balloon=LOW, shares=0, args=args)
    shared_host.sandbox.guest(100).wait(timeout_s=120)
    one = Real(shared_host)
    assert one.ticks(lambda: one.size == LOW)
    return one


def test_a_guest_that_reads_files_at_full_speed_with_memory_to_spare_keeps_its_size(real):
    real.run(READ_FILES)
    before, began_s, fastest = real.reading(), time.monotonic(), 0.0
    for _ in range(4):
        real.host.tick(4)
        now, at_s = real.reading(), time.monotonic()
        fastest = max(fastest, (now.major_faults - before.major_faults) / (at_s - began_s))
        before, began_s = now, at_s
        assert round(now.actual_mib) == LOW
        assert now.available_mib > 90
    assert fastest > need.FAULTS_S, real.console()


def test_a_guest_that_swaps_to_zram_early_keeps_its_size_and_one_that_is_short_gets_more(real):
    for command in SWAP_EARLY:
        real.run(command)
    real.host.tick(2.5)
    before = real.reading()
    real.run(f"echo 30M >{EARLY}/memory.reclaim || true")
    assert real.ticks(lambda: real.reading().swapped_out_mib - before.swapped_out_mib > 15), real.console()
    assert real.reading().available_mib > 90
    real.host.tick(2.5)
    assert real.size == LOW
    # What it holds is the same every 512 bytes: with such a swap it would not be short.
    real.run("swapoff /dev/zram0")
    assert real.ticks(lambda: real.size > LOW + 40, load=real.fill)


def test_a_guest_whose_statistics_were_switched_off_is_asked_again_and_served(real):
    real.qom("qom-set", value=0)
    time.sleep(balloon.LATE_S + 2)
    real.host.tick()
    assert real.qom("qom-get") == balloon.POLLING_S
    before = real.size
    assert real.ticks(lambda: real.size > before + 20, load=real.fill)
    assert real.reading().silence(HIGH) is None
