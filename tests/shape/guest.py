"""A real Linux guest, booted with a VM's options, that says what it sees and leaves."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pxsched.host.topology import Topology, read
from pxsched.root import Root
from pxsched.sandbox import linux

from . import qemu

# A boot takes some 12 s of one CPU. A guest that hangs takes all it is given.
CPU_S, BOOT_S = 40, 150
TRIES = 3
_ARGUMENTS = (
    "console=ttyS0 quiet nokaslr mitigations=off tsc=reliable no_timer_check cryptomgr.notests panic=-1"
    " rdinit=/probe"
)
# Every file that pxsched's own reader of a machine looks at, one a line, and off.
_PROBE = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
echo begin
for file in /sys/devices/system/cpu/online /sys/devices/system/cpu/cpu[0-9]*/topology/core_cpus_list \
 /sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list \
 /sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id \
 /sys/devices/system/cpu/cpu[0-9]*/cache/index3/level \
 /sys/devices/system/cpu/cpu[0-9]*/cache/index3/shared_cpu_list \
 /sys/devices/system/node/node[0-9]*/cpulist /sys/devices/system/node/node[0-9]*/distance; do
  [ -e "$file" ] && echo "$file=$($b cat "$file")"
done
echo end
$b poweroff -f
"""


def boot(
    options: Mapping[str, str], script: str = _PROBE, *, cpu_s: int = CPU_S, most_s: float = BOOT_S
) -> str:
    """What the script prints on the guest's console.

    The emulation hangs a guest with several vCPUs now and then; such a guest is started anew. cpu_s: the CPU
    time it may take, which is the same on a busy machine; most_s: for all of it, asleep or not.
    """
    kernel, root = linux.files()
    with tempfile.TemporaryDirectory() as directory:
        probe = Path(directory, "probe")
        probe.write_text(script)
        probe.chmod(0o755)
        more = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"],
            input=b"probe\n",
            cwd=directory,
            capture_output=True,
            check=True,
        ).stdout
        Path(directory, "root").write_bytes(Path(root).read_bytes() + more)
        line = qemu.command(options)
        line = [{"tcg": "tcg,thread=single"}.get(word, word) for word in line if word != "-S"]
        line[line.index("-qmp") : line.index("-qmp") + 2] = ["-serial", "stdio", "-no-reboot"]
        line += ["-kernel", kernel, "-initrd", f"{directory}/root", "-append", _ARGUMENTS]
        for _ in range(TRIES):
            try:
                done = subprocess.run(
                    ["prlimit", f"--cpu={cpu_s}", *line],
                    capture_output=True,
                    text=True,
                    timeout=most_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                continue
            if done.returncode >= 0:
                assert done.returncode == 0, done.stderr
                return done.stdout
    raise AssertionError(f"the guest hung {TRIES} times")


def sees(options: Mapping[str, str]) -> Topology:
    """The guest's machine, read as we read a host's."""
    said = boot(options)
    with tempfile.TemporaryDirectory() as directory:
        for path, content in re.findall(r"^(/sys/[\w/]+)=([\w,. -]*)\r?$", said, re.MULTILINE):
            file = Path(directory + path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
        return read(Root(directory))
