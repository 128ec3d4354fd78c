#!/usr/bin/env python3
"""What a pass of the timer costs, at 1, 10, 100 and 1,000 VMs of 8 vCPUs, and how it grows.

    python3 bench/tick.py [--most 1000] [--threads]

On a generated node (128 CPUs, a file tree with /proc, /sys and /etc/pve): `tick` as a whole process, and the
passes of `watch`: those that look at everything, once in five seconds, and those that only measure. With
--threads the counters are those of real threads of this process instead, read from the running kernel.
CPU time, user and system; best of several. Writes tables to the standard output.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from pxsched import ledger as ledgers  # noqa: E402
from pxsched import tick as ticks  # noqa: E402
from pxsched.balancing import Balancer  # noqa: E402
from pxsched.guest.process import Process, Role, Thread  # noqa: E402
from pxsched.node import Sighting, open_node  # noqa: E402
from pxsched.root import Root  # noqa: E402

VCPUS, CPUS, L3_CPUS, NODES = 8, 128, 16, 2
# The period for which the cost of a `watch` is given; it looks at everything every LOOK_PERIOD_S.
PERIOD_S = 1.0


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


def virtual_machine(root, vmid):
    pid = pid_of(vmid)
    write(root / f"run/qemu-server/{vmid}.pid", f"{pid}\n")
    config = f"cores: {VCPUS}\nmemory: 4096\nname: vm{vmid}\nhookscript: local:snippets/pxsched\n"
    write(root / f"etc/pve/nodes/bench/qemu-server/{vmid}.conf", config)
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


def cpu_s():
    return time.process_time()


def tick_process_s(root, runs):
    """CPU time of `pxsched tick` as a whole process."""
    best = float("inf")
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(CHECKOUT)!r});"
             "from pxsched.cli import main; sys.exit(main(sys.argv[1:]))", "--root", str(root), "tick"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def generated(most):
    print(
        "| VMs | vCPU threads | tick, ms | watch: look, ms | watch: measure, ms | per thread and pass, µs |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    for number in (n for n in (1, 10, 100, 1000) if n <= most):
        rng, counters = random.Random(1), {}
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            machine(root)
            vmids = range(100, 100 + number)
            for vmid in vmids:
                virtual_machine(root, vmid)
            first = ticks.Session(Root(directory), {})
            first.tick()
            settle_masks(root)
            tick_s = tick_process_s(root, 5 if number <= 100 else 2)
            session = ticks.Session(Root(directory), {}, keep=True)
            looks, measures = [], []
            for number_of_pass in range(8):
                age(root, vmids, rng, counters)
                time.sleep(0.05)
                looking = number_of_pass % 4 == 0
                session._looked_s = -ticks.LOOK_PERIOD_S if looking else time.monotonic()
                begin = cpu_s()
                session.tick()
                (looks if looking else measures).append(cpu_s() - begin)
            look_s, measure_s = min(looks), min(measures[1:])
            passes = ticks.LOOK_PERIOD_S / PERIOD_S
            mean_us = (look_s + (passes - 1) * measure_s) / passes / (number * VCPUS) * 1e6
            print(
                f"| {number} | {number * VCPUS} | {tick_s * 1e3:.0f} | {look_s * 1e3:.1f} | "
                f"{measure_s * 1e3:.2f} | {mean_us:.1f} |",
                flush=True,
            )


def real_threads(most):
    """Real threads of this process, dealt out as the vCPUs of so many VMs; a quarter of them is awake."""
    print("\n| VMs | real threads | measuring pass, ms | per thread and pass, µs |")
    print("|---:|---:|---:|---:|")
    end = threading.Event()
    threading.stack_size(64 << 10)
    tids, lock = [], threading.Lock()

    def sleeper():
        with lock:
            tids.append(threading.get_native_id())
        while not end.wait(10):
            pass

    pid = os.getpid()
    for number in (n for n in (1, 10, 100, 1000) if n <= most):
        while len(tids) < number * VCPUS:
            wanted = number * VCPUS - threading.active_count() + 1
            for _ in range(wanted):
                threading.Thread(target=sleeper, daemon=True).start()
            time.sleep(0.2)
        with tempfile.TemporaryDirectory() as directory:
            base = Path(directory)
            machine(base)
            os.rename(base / "proc", base / "proc.away")
            os.symlink("/proc", base / "proc")
            root = Root(directory)
            node = open_node(root, {})
            sightings = []
            for index in range(number):
                mine = tids[index * VCPUS : (index + 1) * VCPUS]
                threads = tuple(Thread(tid, 1, "CPU", Role.VCPU, (vcpu,)) for vcpu, tid in enumerate(mine))
                sightings.append(Sighting(100 + index, None, Process(pid, 1), threads))
            os.makedirs(base / "run/pxsched")
            balancer = Balancer(root, keep=True)
            balancer.look(sightings)
            costs = []
            for _ in range(8):
                time.sleep(0.05)
                begin = time.thread_time()
                balancer.run(node, ledgers.peek(root), sightings)
                costs.append(time.thread_time() - begin)
            best = min(costs[2:])
            print(
                f"| {number} | {number * VCPUS} | {best * 1e3:.2f} | {best / number / VCPUS * 1e6:.1f} |",
                flush=True,
            )
    end.set()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=1000, help="VMs")
    parser.add_argument("--threads", action="store_true", help="measure real threads, too")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs; a watch of {PERIOD_S:g} s\n")
    generated(options.most)
    if options.threads:
        real_threads(options.most)


if __name__ == "__main__":
    main()
