"""A guest as it is, for real: Debian's kernel that reads files.

Its first root is the sandbox's, with an agent that runs what it is told and the module for a disk.
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
from pxsched.sandbox import linux

from .conftest import Host

pytestmark = [
    pytest.mark.measures,
    pytest.mark.slow,
]

LOW, HIGH = 320, 768
BOUNDS = "starved_mib = 40\nwasteful_mib = 90\nwasteful_percent = 25\nstarved_percent = 5\n"
# What its agent does besides.
RUN = 'run) eval "$first $second" >/dev/ttyS1 2>&1 </dev/null; echo "ok run $?" ;;\n        '
PROGRAMS = 10
# Every first run of a program on the disk reads its pages, and nothing else: no read-ahead.
READ_FILES = (
    "mkdir /disk; mount -t ext4 -o ro /dev/vda /disk; echo 0 >/sys/block/vda/queue/read_ahead_kb;"
    "(while :; do echo 1 >/proc/sys/vm/drop_caches;"
    " for one in /disk/busybox*; do $one true; cat $one >/dev/null; done; done) &"
)


@dataclass
class Real:
    """The host, and its guest 100."""

    host: Host

    def run(self, command: str) -> None:
        self.host.sandbox.guest(100).tell(f"run {command}")

    def reading(self) -> balloon.Reading:
        found = balloon.read(self.host.root, 100, patience_s=5.0)
        assert isinstance(found, balloon.Reading), found
        return found

    @property
    def size(self) -> int:
        return round(self.reading().actual_mib)

    def ticks(self, condition, *, within_s=60.0) -> bool:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.host.tick(2.5)
        return True

    def console(self) -> str:
        return self.host.sandbox.node.own(100, "console").read_text("utf-8", "replace")


def files(directory: Path) -> tuple[Path, Path]:
    """The first root, and a disk with programs."""
    init = (Path(linux.__file__).parent / "files/init").read_text()
    init = init.replace("state) state", f"{RUN}state) state").replace("</modules/order", "</modules/all")
    kernel = linux._module_files(linux._kernel().modules)
    modules = linux._with_dependencies(kernel, (*linux._MODULES, "virtio_blk"))
    contents = {f"modules/{name}.ko": data for name, data in modules.items()}
    contents["modules/all"] = "".join(f"{name}.ko\n" for name in modules).encode()
    contents["init"] = init.encode()
    members = [linux._Member(name, stat.S_IFREG | 0o755, data) for name, data in contents.items()]
    members.append(linux._Member("TRAILER!!!", 0))
    packed = b"".join(linux._packed(member, 1000 + number) for number, member in enumerate(members))
    first_root = directory / "root.cpio"
    first_root.write_bytes(Path(linux.files()[1]).read_bytes() + packed)
    programs = directory / "programs"
    programs.mkdir()
    for number in range(PROGRAMS):
        (programs / f"busybox{number}").write_bytes(linux._busybox())
        (programs / f"busybox{number}").chmod(0o755)
    disk = directory / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext2", "-d", programs, disk, "48M"], check=True)
    return first_root, disk


@pytest.fixture(scope="module")
def real(shared_host, tmp_path_factory):
    try:
        first_root, disk = files(tmp_path_factory.mktemp("files"))
    except UserError as error:
        pytest.skip(f"no kernel for a Linux guest: {error}")
    shared_host.settings(f"[node]\nreserved_mib = 64\n[defaults]\n{BOUNDS}")
    drive = f"file={disk},format=raw,if=none,readonly=on,id=programs"
    args = f"-initrd {first_root} -drive {drive} -device virtio-blk-pci,drive=programs"
    shared_host.start(100, guest="linux", memory=HIGH, balloon=LOW, shares=0, args=args)
    shared_host.sandbox.guest(100).wait(timeout_s=120)
    one = Real(shared_host)
    assert one.ticks(lambda: one.size == LOW)
    return one


def test_a_guest_that_reads_files_at_full_speed_with_memory_to_spare_keeps_its_size(real):
    real.run(READ_FILES)
    before, began_s, fastest = real.reading(), time.monotonic(), 0.0
    for _ in range(6):
        real.host.tick(5)
        now, at_s = real.reading(), time.monotonic()
        fastest = max(fastest, (now.major_faults - before.major_faults) / (at_s - began_s))
        before, began_s = now, at_s
        assert round(now.actual_mib) == LOW
        assert now.available_mib > 90
    assert fastest > need.FAULTS_S, real.console()[-500:]
