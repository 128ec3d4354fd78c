"""What a start and a stop cost in the hook: each phase as a whole process, beside bare Python, a bash hook
and what proxmox-scheduler does for the same VM.

usage: bench/hook.py [--runs N] [--vms N ...] [--chroot DIR]

The node is made up: 256 CPUs (two packages of 64 cores, SMT, an L3 per eight cores), VMs in the ledger.
The VM is real: QEMU with eight vCPUs, pinned to CPU 1, its other threads to CPU 0, which this machine has, so
that every write counts; a run in which one is refused fails. All rows are measured in turn within one run;
ratios are to `python3 -I -c pass` of the same run. --chroot: a root with a Python of its own, as
`mmdebstrap --variant=minbase --include=python3,python3-filelock trixie DIR` makes it. On a machine that is
busy, `chrt --fifo 10 bench/hook.py` keeps others from being measured.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

CORES = 128
VCPUS = 8
# As /run is.
MEMORY = "/dev/shm"
CONFIG = f"cores: {VCPUS}\nhookscript: local:snippets/pxsched\nmemory: 4096\n"
PINNED = f"{CONFIG}affinity: {','.join(['1'] * VCPUS)}\n"
BASH = """\
#!/bin/bash
# What the bash hooks that go round in forums do: vCPU threads by name, one taskset each.
pid=$(cat "$PXSCHED_ROOT/run/qemu-server/$1.pid" 2>/dev/null) || exit 0
for task in /proc/$pid/task/*; do
  read -r name < "$task/comm"
  case $name in CPU*) cpu=${name#CPU }; taskset -pc $((${cpu%%/*} % 2)) "${task##*/}" >/dev/null ;; esac
done
"""
SCHEDULER = """\
#!/bin/bash
# What proxmox-scheduler does for a VM that started: its affinity option once more on every thread, then the
# governor of these CPUs.
pid=$(cat "$PXSCHED_ROOT/run/qemu-server/$1.pid" 2>/dev/null) || exit 0
list=$(sed -n 's/^affinity: //p' "$PXSCHED_ROOT/etc/pve/nodes/bench/qemu-server/$1.conf")
taskset -apc "$list" "$pid" >/dev/null
for cpu in ${list//,/ }; do
  file=$PXSCHED_ROOT/sys/devices/system/cpu/cpu$cpu/cpufreq/scaling_governor
  [ ! -w "$file" ] || echo performance >"$file"
done
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def threads_of(number: int, size: int) -> str:
    """The CPUs of `size` cores from core `number` on: core n is CPUs 2n-1 and 2n, core 0 is CPU 0 alone, so
    that the housekeeping core of node 0 and the first other CPU are ones that any machine has.
    """
    return f"{max(2 * number - 1, 0)}-{2 * (number + size) - 2}\n"


def make_node(root: Path, vms: int) -> None:
    """The files the hook reads, with the running kernel's /proc."""
    cpus = root / "sys/devices/system/cpu"
    write(cpus / "online", threads_of(0, CORES))
    for cpu in range(2 * CORES - 1):
        core = (cpu + 1) // 2
        write(cpus / f"cpu{cpu}/topology/core_cpus_list", threads_of(core, 1))
        write(cpus / f"cpu{cpu}/topology/physical_package_id", f"{core // 64}\n")
        write(cpus / f"cpu{cpu}/topology/package_cpus_list", threads_of(core // 64 * 64, 64))
        write(cpus / f"cpu{cpu}/cache/index3/level", "3\n")
        write(cpus / f"cpu{cpu}/cache/index3/size", "32768K\n")
        write(cpus / f"cpu{cpu}/cache/index3/shared_cpu_list", threads_of(core // 8 * 8, 8))
    for node in range(2):
        base = root / f"sys/devices/system/node/node{node}"
        write(base / "cpulist", threads_of(node * 64, 64))
        write(base / "meminfo", f"Node {node} MemTotal: 1056000000 kB\nNode {node} MemFree: 1056000000 kB\n")
        write(base / "distance", "10 32\n" if node == 0 else "32 10\n")
    for vmid in range(100, 100 + vms):
        write(root / f"etc/pve/nodes/bench/qemu-server/{vmid}.conf", CONFIG)
    write(root / f"etc/pve/nodes/bench/qemu-server/{ours(vms)}.conf", PINNED)
    write(root / f"etc/pve/nodes/bench/qemu-server/{ours(vms) + 1}.conf", CONFIG)
    (root / "etc/pve/local").symlink_to("nodes/bench")
    (root / "proc").symlink_to("/proc")
    (root / "run/qemu-server").mkdir(parents=True)
    for name, text in (("bash-hook", BASH), ("scheduler", SCHEDULER)):
        write(root / name, text)
        (root / name).chmod(0o755)


def ours(vms: int) -> int:
    return 100 + vms


def fill_ledger(root: Path, vms: int) -> None:
    """As many passes would have left it; the process of all these VMs is this one."""
    from pxsched.guest import process
    from pxsched.ledger import file as ledgers
    from pxsched.ledger.claim import Claim, State
    from pxsched.ledger.journal import Entry
    from pxsched.placement.request import Placement, VmClass
    from pxsched.root import Root

    here = Root(str(root))
    alive = process.identify(here, os.getpid())
    with ledgers.locked(here) as ledger:
        for number in range(vms):
            vmid, group = 100 + number, number % 16
            home = frozenset(range(group * 16, group * 16 + 16))
            nodes = frozenset({group // 8})
            placement = Placement(vmid, VmClass.SHARED, (home,) * 8, home, nodes, ("a home",))
            ledger.claims[vmid] = Claim(
                placement, State.RUNNING, process=alive, memory_mib=4096, load=number % 30 / 10
            )
            for tid in range(12):
                key = f"affinity:{vmid * 100 + tid},1"
                ledger.journal[key] = Entry(vmid, "vcpu", "0-255", f"{group * 16}-{group * 16 + 15}", 1)
        ledgers.save(here, ledger)


@contextmanager
def guest(root: Path, vmid: int) -> Iterator[None]:
    """A stopped QEMU with eight vCPUs, started as Proxmox names its pid file and socket."""
    run = root / "run/qemu-server"
    command = [
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "pc",
        "-accel", "tcg,thread=multi", "-m", "16", "-smp", str(VCPUS), "-S", "-name", "bench,debug-threads=on",
        "-qmp", f"unix:{run}/{vmid}.qmp,server=on,wait=off", "-pidfile", f"{run}/{vmid}.pid",
    ]  # fmt: skip
    started = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 30
        while not (run / f"{vmid}.pid").exists() or len(os.listdir(f"/proc/{started.pid}/task")) < VCPUS + 2:
            assert time.monotonic() < deadline, "QEMU does not start"
            time.sleep(0.02)
        yield
    finally:
        started.kill()
        started.wait()
        (run / f"{vmid}.pid").unlink(missing_ok=True)


class Meter:
    """Wall and CPU time of processes, by the name of their row. chroot: where ours have their Python."""

    def __init__(self, root: Path, chroot: str) -> None:
        self._environment = {
            "PATH": os.environ["PATH"], "PXSCHED_ROOT": str(root), "PVE_MIGRATED_FROM": "",
        }  # fmt: skip
        self.root = root
        self._chroot = chroot
        self.costs: dict[str, list[tuple[float, float]]] = {}

    def python(self, name: str, *words: str) -> str:
        enter = (lambda: os.chroot(self._chroot)) if self._chroot != "/" else None
        return self.run(name, ["/usr/bin/python3", "-I", *words], enter)

    def run(self, name: str, command: list[str], enter: Callable[[], None] | None = None) -> str:
        """Runs and measures one process; gives what it said."""
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=True, preexec_fn=enter
        )
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.costs.setdefault(name, []).append((wall * 1e3, cpu * 1e3))
        return done.stdout + done.stderr


def cycle(root: Path, vms: int, meter: Meter) -> None:
    """One start and stop of the VM with the hook, and once with each of the others."""
    vmid, hook = ours(vms), str(CHECKOUT / "hooks/pxsched")
    meter.python("python3 -I -c pass", "-c", "pass")
    said = meter.python("pxsched pre-start", hook, str(vmid), "pre-start")
    assert f"VM {vmid} is pinned" in said, said
    with guest(root, vmid):
        said = meter.python("pxsched post-start", hook, str(vmid), "post-start")
        turned = re.search(r"(\d+) knobs had to be turned", said)
        assert turned and int(turned[1]) > VCPUS and "asked for" not in said and "refused" not in said, said
        meter.python("pxsched pre-stop", hook, str(vmid), "pre-stop")
    meter.python("pxsched post-stop", hook, str(vmid), "post-stop")
    kept = (root / "run/pxsched/ledger.json").read_bytes()
    said = meter.python("pxsched pre-start of a shared VM", hook, str(vmid + 1), "pre-start")
    assert f"VM {vmid + 1} is shared" in said, said
    (root / "run/pxsched/ledger.json").write_bytes(kept)
    for name, script in (("bash hook with taskset", "bash-hook"), ("proxmox-scheduler's work", "scheduler")):
        with guest(root, vmid):
            meter.run(name, [str(root / script), str(vmid), "post-start"])


def measure(sizes: list[int], runs: int, chroot: str) -> dict[int, Meter]:
    """One meter for each number of VMs; all are measured in turn."""
    meters = {}
    with ExitStack() as stack:
        for vms in sizes:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pxb", dir=MEMORY)))
            make_node(root, vms)
            fill_ledger(root, vms)
            meters[vms] = Meter(root, chroot)
        for number in range(runs + 1):
            for vms, meter in meters.items():
                if number == 1:
                    meter.costs.clear()  # the first run compiles what is not compiled yet
                cycle(meter.root, vms, meter)
    return meters


def in_a_namespace(chroot: str) -> None:
    """Goes on in a mount namespace of its own, where the chroot has our directories in the same places."""
    if os.environ.get("PXSCHED_BENCH_INSIDE"):
        for place in (str(CHECKOUT), "/proc", "/dev"):
            os.makedirs(f"{chroot}{place}", exist_ok=True)
            subprocess.run(["mount", "--rbind", place, f"{chroot}{place}"], check=True)
        return
    os.environ["PXSCHED_BENCH_INSIDE"] = "1"
    os.execvp("unshare", ["unshare", "-m", "--propagation", "private", sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--vms", type=int, nargs="+", default=[1, 200, 1000])
    parser.add_argument("--chroot", default="/")
    options = parser.parse_args()
    if options.chroot != "/":
        in_a_namespace(options.chroot)
    assert shutil.which("qemu-system-x86_64"), "QEMU is needed"
    meters = measure(options.vms, options.runs, options.chroot)
    for vms, meter in meters.items():
        bare = median(cpu for _, cpu in meter.costs["python3 -I -c pass"])
        print(f"256 CPUs, {vms} VMs in the ledger, {options.runs} runs each; medians\n")
        print(f"| process | wall ms | CPU ms | CPU, times bare Python | times that of {options.vms[0]} VMs |")
        print("|---|---:|---:|---:|---:|")
        for name, measured in meter.costs.items():
            wall, cpu = median(wall for wall, _ in measured), median(cpu for _, cpu in measured)
            few = median(cpu for _, cpu in meters[options.vms[0]].costs[name])
            print(f"| {name} | {wall:.0f} | {cpu:.1f} | {cpu / bare:.1f} | {cpu / few:.2f} |")
        print()


if __name__ == "__main__":
    main()
