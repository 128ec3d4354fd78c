#!/usr/bin/env python3
"""What a pass of the timer costs, at 1, 10, 100 and 1,000 VMs of 8 vCPUs, and how it grows.

    python3 bench/tick.py [--most 1000] [--threads]

On a generated node (128 CPUs, a file tree with /proc, /sys and /etc/pve): `tick` as a whole process, and the
passes of `watch`: those that look at everything, which are all of them at a period of ten seconds, and those
that only measure, which are nine of ten at a period of one. With --threads, the same passes of `watch` over
real processes of so many real threads on this machine's CPUs. CPU time, user and system, medians; the first
passes of a `watch`, which read everything, are left out. Writes tables to the standard output.
"""

import argparse
import gc
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from pxsched import tick as ticks  # noqa: E402
from pxsched.ledger import file as ledgers  # noqa: E402
from pxsched.root import Root  # noqa: E402

VCPUS, CPUS, L3_CPUS, NODES = 8, 128, 16, 2
NUMBERS = (1, 10, 100, 1000)
# Stands for so many QEMUs: processes with the threads of a VM, all with the parent's command line, which
# names all pid files; they end when their parent's standard input does.
HERD = """
import os, signal, sys, threading
def name(text):
    open(f'/proc/self/task/{threading.get_native_id()}/comm', 'w').write(text)
def vcpu(number):
    name(f'CPU {number}/KVM')
    started.release()
    threading.Event().wait()
threading.stack_size(64 << 10)
pid_files = [word for flag, word in zip(sys.argv, sys.argv[1:]) if flag == '-pidfile']
children = []
for path in pid_files:
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        os.close(ready)
        started = threading.Semaphore(0)
        for number in range(int(sys.argv[1])):
            threading.Thread(target=vcpu, args=(number,), daemon=True).start()
        for _ in range(int(sys.argv[1])):
            started.acquire()
        os.close(go)
        signal.pause()
    os.close(go)
    os.read(ready, 1)
    os.close(ready)
    children.append(child)
    with open(path, 'w') as stream:
        stream.write(f'{child}\\n')
print('ready', flush=True)
sys.stdin.read()
for child in children:
    os.kill(child, signal.SIGKILL)
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root):
    """128 CPUs, siblings next to each other, 8 L3 groups, 2 nodes."""
    cpu_dir = root / "sys/devices/system/cpu"
    for name in ("online", "present", "possible"):
        write(cpu_dir / name, f"0-{CPUS - 1}\n")
    per_node = CPUS // NODES
    for cpu in range(CPUS):
        core, l3, node = cpu // 2, cpu // L3_CPUS, cpu // per_node
        topology = cpu_dir / f"cpu{cpu}/topology"
        write(topology / "core_cpus_list", f"{core * 2}-{core * 2 + 1}\n")
        write(topology / "core_id", f"{core}\n")
        write(topology / "physical_package_id", f"{node}\n")
        write(topology / "package_cpus_list", f"{node * per_node}-{(node + 1) * per_node - 1}\n")
        cache = cpu_dir / f"cpu{cpu}/cache/index3"
        write(cache / "level", "3\n")
        write(cache / "shared_cpu_list", f"{l3 * L3_CPUS}-{(l3 + 1) * L3_CPUS - 1}\n")
        write(cache / "size", "32768K\n")
    for node in range(NODES):
        base = root / f"sys/devices/system/node/node{node}"
        write(base / "cpulist", f"{node * per_node}-{(node + 1) * per_node - 1}\n")
        write(base / "distance", "10 21\n" if node == 0 else "21 10\n")
        total = f"Node {node} MemTotal: 1073741824 kB\nNode {node} MemFree: 900000000 kB\n"
        write(base / "meminfo", total)
    write(root / "proc/meminfo", "MemTotal: 2147483648 kB\nMemAvailable: 1800000000 kB\n")
    write(root / "proc/sys/kernel/osrelease", "6.8.0\n")
    write(root / "etc/hostname", "bench\n")


def pid_of(vmid):
    return 100000 + vmid * 20


def tids_of(vmid):
    return [pid_of(vmid) + 1 + vcpu for vcpu in range(VCPUS)]


def stat_line(tid, name):
    return f"{tid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 9 0 {tid} 0 0\n"


def configuration(root, vmid):
    """Written a minute ago: a pass trusts what has been the same for a while."""
    path = root / f"etc/pve/nodes/bench/qemu-server/{vmid}.conf"
    write(path, f"cores: {VCPUS}\nmemory: 4096\nname: vm{vmid}\nhookscript: local:snippets/pxsched\n")
    os.utime(path, (time.time() - 60,) * 2)


def virtual_machine(root, vmid):
    pid = pid_of(vmid)
    write(root / f"run/qemu-server/{vmid}.pid", f"{pid}\n")
    configuration(root, vmid)
    proc = root / f"proc/{pid}"
    command = ["/usr/bin/kvm", "-id", str(vmid), "-pidfile", f"/var/run/qemu-server/{vmid}.pid"]
    write(proc / "cmdline", "\0".join(command) + "\0")
    write(proc / "stat", stat_line(pid, "kvm"))
    threads = {pid: "kvm"} | {tid: f"CPU {vcpu}/KVM" for vcpu, tid in enumerate(tids_of(vmid))}
    for tid, name in threads.items():
        task = proc / f"task/{tid}"
        write(task / "stat", stat_line(tid, name))
        write(task / "schedstat", "0 0 0\n")
        write(root / f"proc/{tid}/status", f"Name:\t{name}\nCpus_allowed_list:\t0-{CPUS - 1}\n")
        if tid != pid:
            write(root / f"proc/{tid}/stat", stat_line(tid, name))


def settle_masks(root):
    """Gives the threads the masks that their claims want: a node at rest."""
    for vmid, claim in ledgers.peek(Root(str(root))).claims.items():
        from pxsched.host import cpulist

        homes = [claim.placement.emulator, *claim.placement.vcpus]
        for tid, home in zip([pid_of(vmid), *tids_of(vmid)], homes, strict=True):
            write(root / f"proc/{tid}/status", f"Name:\tx\nCpus_allowed_list:\t{cpulist.format(home)}\n")


def age(root, vmids, rng, counters):
    """Lets every thread run a little, and wait a very little."""
    for vmid in vmids:
        for tid in tids_of(vmid):
            run, wait = counters.get(tid, (0, 0))
            run, wait = counters[tid] = run + rng.randrange(10**6), wait + rng.randrange(10**4)
            (root / f"proc/{pid_of(vmid)}/task/{tid}/schedstat").write_text(f"{run} {wait} 1\n")


def tick_process_s(root, runs):
    """CPU time of `pxsched tick` as a whole process, by the system's Python."""
    environ = {**os.environ, "PXSCHED_ROOT": str(root)}
    start = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); from pxsched.cli import entry; entry()"
    costs = []
    for _ in range(runs + 1):
        child = os.posix_spawn(
            "/usr/bin/python3", ["python3", "-I", "-c", start, "tick"], environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )  # fmt: skip
        _, status, used = os.wait4(child, 0)
        assert status == 0
        costs.append(used.ru_utime + used.ru_stime)
    return median(costs[1:])


def passes(root, between):
    """CPU time of a pass of `watch` that looks at everything and writes its state down, and of one that does
    not; the caches have warmed up. between: called before each pass.
    """
    session = ticks.Session(Root(str(root)), {}, keep=True)
    gc.collect()
    gc.disable()  # as `watch` does
    looks, measures = [], []
    for number in range(16):
        between()
        time.sleep(0.05)
        looking = number % 2 == 0
        session._looked_s = -ticks.LOOK_PERIOD_S if looking else time.monotonic()
        session._balancer._saved_s = 0.0 if looking else time.monotonic()
        begin = time.process_time()
        session.tick()
        (looks if looking else measures).append(time.process_time() - begin)
    return median(looks[4:]), median(measures[4:])


def row(number, tick_s, look_s, measure_s):
    threads = number * VCPUS
    fast_s = (look_s + (ticks.LOOK_PERIOD_S - 1) * measure_s) / ticks.LOOK_PERIOD_S
    tick = "" if tick_s is None else f" {tick_s * 1e3:.0f} |"
    print(
        f"| {number} | {threads} |{tick} {look_s * 1e3:.1f} | {measure_s * 1e3:.2f} |"
        f" {fast_s / threads * 1e6:.1f} | {look_s / threads * 1e6:.1f} |",
        flush=True,
    )


def generated(most):
    print("| VMs | vCPU threads | tick, ms | look, ms | measure, ms | µs a thread at 1 s | at 10 s |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for number in (n for n in NUMBERS if n <= most):
        rng, counters = random.Random(1), {}
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            machine(root)
            vmids = range(100, 100 + number)
            for vmid in vmids:
                virtual_machine(root, vmid)
            ticks.Session(Root(directory), {}).tick()
            settle_masks(root)
            tick_s = tick_process_s(root, 20 if number <= 100 else 3)
            row(number, tick_s, *passes(root, lambda: age(root, vmids, rng, counters)))  # noqa: B023


@contextmanager
def herd(root, vmids):
    """Real processes for these VMs."""
    files = [word for vmid in vmids for word in ("-pidfile", str(root / f"run/qemu-server/{vmid}.pid"))]
    command = ["/usr/bin/python3", "-S", "-c", HERD, str(VCPUS), *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout.readline() == b"ready\n"
            yield
        finally:
            parent.stdin.close()


def real_threads(most):
    """Real threads, asleep, on the CPUs that this machine has."""
    print("\n| VMs | real threads | look, ms | measure, ms | µs a thread at 1 s | at 10 s |")
    print("|---:|---:|---:|---:|---:|---:|")
    for number in (n for n in NUMBERS if n <= most):
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            for name in ("proc", "sys"):
                (root / name).symlink_to(f"/{name}")
            write(root / "etc/hostname", "bench\n")
            (root / "run/qemu-server").mkdir(parents=True)
            vmids = range(100, 100 + number)
            for vmid in vmids:
                configuration(root, vmid)
            with herd(root, vmids):
                time.sleep(2.5)  # threads younger than two seconds may still get another name
                row(number, None, *passes(root, lambda: None))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=1000, help="VMs")
    parser.add_argument("--threads", action="store_true", help="measure real threads, too")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    generated(options.most)
    if options.threads:
        real_threads(options.most)


if __name__ == "__main__":
    main()
