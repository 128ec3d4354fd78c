"""What one hook phase costs as a whole process, beside bare Python and a bash hook that calls taskset.

usage: bench/hook.py [--runs N]

The node is made up: 256 CPUs (two packages of 64 cores, SMT, an L3 per eight cores), 200 VMs in the ledger.
All columns are measured in turn within one run; ratios are to `python3 -I -c pass` of the same run.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

CHECKOUT = Path(__file__).resolve().parents[1]
PHASES = ("pre-start", "post-start", "pre-stop", "post-stop")
VMS = 200
CORES = 128
CONFIG = """\
cores: 8
hookscript: local:snippets/pxsched
memory: 4096
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
"""
BASH = """\
#!/bin/bash
pid=$(cat "$PXSCHED_ROOT/run/qemu-server/$1.pid" 2>/dev/null) || exit 0
cpu=0
for task in /proc/$pid/task/*; do
  read -r name < "$task/comm"
  case $name in CPU*) taskset -pc $((cpu++ % 2)) "${task##*/}" >/dev/null ;; esac
done
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_node(root: Path) -> None:
    """The files the hook reads, with the running kernel's /proc."""
    cpus = root / "sys/devices/system/cpu"
    write(cpus / "online", f"0-{2 * CORES - 1}\n")
    for cpu in range(2 * CORES):
        core = cpu % CORES
        group, package = core // 8, core // 64
        write(cpus / f"cpu{cpu}/topology/core_cpus_list", f"{core},{core + CORES}\n")
        write(cpus / f"cpu{cpu}/topology/physical_package_id", f"{package}\n")
        first = package * 64
        listed = f"{first}-{first + 63},{first + CORES}-{first + CORES + 63}\n"
        write(cpus / f"cpu{cpu}/topology/package_cpus_list", listed)
        write(cpus / f"cpu{cpu}/cache/index3/level", "3\n")
        write(cpus / f"cpu{cpu}/cache/index3/size", "32768K\n")
        shared = f"{group * 8}-{group * 8 + 7},{group * 8 + CORES}-{group * 8 + CORES + 7}\n"
        write(cpus / f"cpu{cpu}/cache/index3/shared_cpu_list", shared)
    for node in range(2):
        base = root / f"sys/devices/system/node/node{node}"
        first = node * 64
        listed = f"{first}-{first + 63},{first + CORES}-{first + CORES + 63}\n"
        write(base / "cpulist", listed)
        write(base / "meminfo", f"Node {node} MemTotal: 1056000000 kB\nNode {node} MemFree: 1056000000 kB\n")
        write(base / "distance", "10 32\n" if node == 0 else "32 10\n")
    for vmid in range(100, 100 + VMS + 1):
        write(root / f"etc/pve/nodes/bench/qemu-server/{vmid}.conf", CONFIG)
    (root / "etc/pve/local").symlink_to("nodes/bench")
    (root / "proc").symlink_to("/proc")
    (root / "run/qemu-server").mkdir(parents=True)


def claims(root: Path) -> None:
    """A ledger with 200 VMs, as many passes would have left it; their process is this one."""
    sys.path.insert(0, str(CHECKOUT))
    from pxsched.guest import process
    from pxsched.ledger import file as ledgers
    from pxsched.ledger.claim import Claim, State
    from pxsched.ledger.journal import Entry
    from pxsched.placement.request import Placement, VmClass
    from pxsched.root import Root

    here = Root(str(root))
    alive = process.identify(here, os.getpid())
    with ledgers.locked(here) as ledger:
        for number in range(VMS):
            vmid, group = 100 + number, number % 16
            home = frozenset(range(group * 8, group * 8 + 8))
            nodes = frozenset({group // 8})
            placement = Placement(vmid, VmClass.SHARED, (home,) * 8, home, nodes, ("a home",))
            ledger.claims[vmid] = Claim(placement, State.RUNNING, process=alive, memory_mib=4096)
            for tid in range(12):
                key = f"affinity:{vmid * 100 + tid},1"
                ledger.journal[key] = Entry(vmid, "vcpu", "0-255", f"{group * 8}-{group * 8 + 7}", 1)
        ledgers.save(here, ledger)


def guest(root: Path, vmid: int) -> subprocess.Popen[bytes]:
    """A stopped QEMU with eight vCPUs, started as Proxmox names its pid file and socket."""
    run = root / "run/qemu-server"
    command = [
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "pc",
        "-accel", "tcg,thread=multi", "-m", "16", "-smp", "8", "-S", "-name", "bench,debug-threads=on",
        "-qmp", f"unix:{run}/{vmid}.qmp,server=on,wait=off", "-pidfile", f"{run}/{vmid}.pid",
    ]  # fmt: skip
    started = subprocess.Popen(command)
    deadline = time.monotonic() + 30
    while not (run / f"{vmid}.pid").exists():
        assert time.monotonic() < deadline, "QEMU does not start"
        time.sleep(0.05)
    return started


def cost_ms(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU time of one process."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run(command, env=environment, stdout=quiet, stderr=quiet, check=False)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1e3, cpu * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    vmid = 100 + VMS
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_node(root)
        claims(root)
        qemu = guest(root, vmid)
        try:
            write(root / "bash-hook", BASH)
            (root / "bash-hook").chmod(0o755)
            environment = {"PATH": os.environ["PATH"], "PXSCHED_ROOT": str(root), "PVE_MIGRATED_FROM": ""}
            hook = str(CHECKOUT / "hooks/pxsched")
            rows = {"python3 -I -c pass": ["/usr/bin/python3", "-I", "-c", "pass"]}
            rows |= {f"pxsched {phase}": [hook, str(vmid), phase] for phase in PHASES}
            rows["bash hook with taskset"] = [str(root / "bash-hook"), str(vmid), "post-start"]
            costs = {name: [] for name in rows}
            for _ in range(runs):
                for name, command in rows.items():
                    costs[name].append(cost_ms(command, environment))
        finally:
            qemu.kill()
            qemu.wait()
    bare = median(cpu for _, cpu in costs["python3 -I -c pass"])
    print(f"256 CPUs, {VMS} VMs in the ledger, {runs} runs each; medians\n")
    print("| process | wall ms | CPU ms | CPU, times bare Python |")
    print("|---|---:|---:|---:|")
    for name, measured in costs.items():
        wall, cpu = median(wall for wall, _ in measured), median(cpu for _, cpu in measured)
        print(f"| {name} | {wall:.0f} | {cpu:.0f} | {cpu / bare:.1f} |")


if __name__ == "__main__":
    main()
