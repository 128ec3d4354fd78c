"""Placement side by side: pxsched, OpenStack Nova 34, the stock node and random neighbours.

    bench/placement.py [--nova PYTHON] [--arrivals N] [--seeds N] [--foreign SHARE] [--markdown]

Azure's VM arrivals and departures (public dataset V1), thinned out until they offer one host a little more
than it can hold, are replayed on captured machines; every VM asks for exclusive CPUs and lets others have the
rest of a core (pxsched: smt = "share", Nova: "prefer"). All policies see the same requests, the same CPUs and
the same memory, and keep their own state.

Every policy is asked for every VM, but only what Nova admits stays, so that all carry the same load: who
refuses one large VM has room for many small ones later, and looks tidier, too. Times are CPU time of the
decision alone; `--alone` lets everybody keep what he admits. With `--foreign`, VMs that are not opted in are
confined to that share of the cores and the host itself is busy on as many others; only pxsched is told of
them. What one decision costs by the number of NUMA nodes is measured by
decisions.py. Nova answers from an environment of its own: without `--nova` one is made by pip below the
user's cache directory.
"""

import argparse
import csv
import gc
import gzip
import heapq
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pxsched.value import replace

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pxsched.host.topology import L3, Cpu, Node, Package, Topology, read  # noqa: E402
from pxsched.placement.memory import divide  # noqa: E402
from pxsched.placement.request import Foreign, Holding, Host, Refused, Request, VmClass  # noqa: E402
from pxsched.placement.search import place  # noqa: E402
from pxsched.root import Root  # noqa: E402
from pxsched.settings.policy import Smt  # noqa: E402

# Memory of every host: as much as Azure's largest flavours want per vCPU, so that CPUs run out first and
# every crossing is one of CPUs.
MIB_PER_CPU = 8192
NOVA = "nova==34.*"


@dataclass(frozen=True)
class Vm:
    vmid: int
    arrival_s: int
    vcpus: int
    memory_mib: int
    duration_s: int


def topologies(corpora, directory, hosts):
    """name -> Topology of the hosts of a table: name, captured machine or "", what is changed of it."""
    trees = sorted({tree for _, tree, _ in hosts if tree})
    subprocess.run(["tar", "-xJf", corpora / "topologies.tar.xz", "-C", directory, *trees], check=True)
    return {
        name: change(read(Root(str(Path(directory) / tree / "root"))) if tree else None)
        for name, tree, change in hosts
    }


def as_it_is(topology):
    return topology


def node_per_package(topology):
    """The capture has no NUMA tables; this is how such a machine shows itself with NPS1."""
    node_of = {cpu: package.id for package in topology.packages for cpu in package.cpus}
    ids = [package.id for package in topology.packages]
    return replace(
        topology,
        cpus={cpu.id: replace(cpu, node=node_of[cpu.id]) for cpu in topology.cpus.values()},
        nodes=tuple(
            Node(package.id, package.cpus, 1 << 38, {i: 10 if i == package.id else 32 for i in ids})
            for package in topology.packages
        ),
    )


HOSTS = (
    ("EPYC 7763 2x64, NPS1", "synth-AMD-19h-Zen3-2xEpyc-7763", node_per_package),
    ("EPYC 9555 2x64 SMT, NPS4", "synth-prrte-turin-4gpu", as_it_is),
    ("EPYC 9354 2x32 SMT, NPS1", "pepc-genoa0", as_it_is),
    ("Xeon 2x28 SMT", "cnto-bm-master", as_it_is),
    ("Core hybrid 4P SMT + 8E", "pepc-adl0", as_it_is),
)


def large_machine(sockets=2, l3s=12, cores=12):
    """A generated machine of sockets x l3s x cores x 2 CPUs, siblings half the machine apart."""
    half = sockets * l3s * cores
    cpus, nodes = {}, {}
    for core in range(half):
        socket, l3 = core // (l3s * cores), core // cores
        for cpu in (core, core + half):
            cpus[cpu] = Cpu(cpu, True, core, l3, socket, socket, frozenset((core, core + half)))
            nodes.setdefault(socket, set()).add(cpu)
    groups = [
        L3(l3, frozenset(cpu for cpu in cpus if cpus[cpu].l3 == l3), 32 << 20) for l3 in range(sockets * l3s)
    ]
    made = tuple(
        Node(i, frozenset(own), 1 << 40, {j: 10 if i == j else 32 for j in nodes}) for i, own in nodes.items()
    )
    packages = tuple(Package(i, frozenset(own)) for i, own in nodes.items())
    return Topology(dict(sorted(cpus.items())), tuple(groups), made, packages)


def arrivals(corpora, cpus, count, load, seed):
    """About `count` VMs whose vCPUs would occupy `load` times the host on average, were none refused."""
    file = corpora / "traces/azure-v1-arrivals/dev.csv.gz"
    with gzip.open(file, "rt") as stream:
        rows = [
            (int(row["arrival_s"]), int(row["vcpus"]), float(row["mem_GB"]), int(row["duration_lower_s"]))
            for row in csv.DictReader(stream)
        ]
    rows = [row for row in rows if row[1] <= cpus // 2]
    rng = random.Random(seed)
    chosen = sorted(rng.sample(rows, min(count, len(rows))))
    busy = sum(vcpus * max(300, duration) for _, vcpus, _, duration in chosen)
    # Fewer VMs than the trace has arrive in its time: their clock runs slower, so that the host is full.
    span = busy / (load * cpus)
    first, last = chosen[0][0], chosen[-1][0]
    return [
        Vm(
            100 + i,
            int((arrival - first) * span / (last - first)),
            vcpus,
            int(memory_gb * 1024),
            max(300, duration),
        )
        for i, (arrival, vcpus, memory_gb, duration) in enumerate(chosen)
    ]


def others_of(topology, share, seed):
    """Whoever is on the host besides: VMs of four cores that are confined to them, busy CPUs of the host."""
    rng = random.Random(seed)
    cores = sorted({tuple(sorted(cpu.siblings)) for cpu in topology.cpus.values() if cpu.online})
    size = round(share * len(cores))
    chosen = rng.sample(cores, 2 * size)
    held = sorted(chosen[:size])
    foreign = tuple(
        Foreign(f"VM {900 + i}", frozenset(cpu for core in held[i : i + 4] for cpu in core), 2.0)
        for i in range(0, size, 4)
    )
    return foreign, {cpu: rng.random() for core in chosen[size:] for cpu in core}


class Pxsched:
    def __init__(self, topology, memory, smt, seed, others=((), {})):
        self.host = Host(topology, free_mib=dict(memory), foreign=others[0], busy=others[1])
        self.smt = smt
        self.holdings = {}
        self.memory = {}

    def start(self, vm):
        request = Request(vm.vmid, vm.vcpus, vm.memory_mib, VmClass.DEDICATED, smt=self.smt)
        holdings = list(self.holdings.values())
        begin = time.thread_time_ns()
        try:
            placement = place(self.host, holdings, request)
        except Refused:
            return None, time.thread_time_ns() - begin
        took = time.thread_time_ns() - begin
        share = divide(vm.memory_mib, placement.nodes, self.host.free_mib)
        self._use(share, 1)
        self.memory[vm.vmid] = share
        self.holdings[vm.vmid] = Holding(vm.vmid, placement.vm_class, placement.vcpus, self.smt)
        return [next(iter(cpus)) for cpus in placement.vcpus], took

    def _use(self, share, sign):
        free = self.host.free_mib
        self.host = replace(
            self.host, free_mib={node: free[node] - sign * share.get(node, 0) for node in free}
        )

    def stop(self, vmid):
        self._use(self.memory.pop(vmid), -1)
        del self.holdings[vmid]


class Simple:
    """Free CPUs in an order that knows nothing of the machine."""

    def __init__(self, topology, memory, smt, seed, others=None):
        self.order = sorted(topology.online)
        self.free = set(self.order)
        self.memory = sum(memory.values())
        self.held = {}

    def start(self, vm):
        begin = time.thread_time_ns()
        if len(self.free) < vm.vcpus or self.memory < vm.memory_mib:
            return None, time.thread_time_ns() - begin
        cpus = list(itertools.islice((cpu for cpu in self.order if cpu in self.free), vm.vcpus))
        took = time.thread_time_ns() - begin
        self.free.difference_update(cpus)
        self.memory -= vm.memory_mib
        self.held[vm.vmid] = (cpus, vm.memory_mib)
        return cpus, took

    def stop(self, vmid):
        cpus, memory_mib = self.held.pop(vmid)
        self.free.update(cpus)
        self.memory += memory_mib


class Random(Simple):
    def __init__(self, topology, memory, smt, seed, others=None):
        super().__init__(topology, memory, smt, seed)
        self.rng = random.Random(seed)

    def start(self, vm):
        self.rng.shuffle(self.order)
        return super().start(vm)


class Nova:
    python = sys.executable

    def __init__(self, topology, memory, smt, seed, others=None):
        self.policy = "prefer" if smt is Smt.SHARE else "isolate"
        self.process = subprocess.Popen(
            [self.python, str(HERE / "nova_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._send({"cells": [_nova_cell(topology, node, memory) for node in topology.nodes if node.cpus]})
        self._answer()

    def _send(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _answer(self):
        return json.loads(self.process.stdout.readline())

    def start(self, vm):
        self._send({"start": vm.vmid, "vcpus": vm.vcpus, "memory_mib": vm.memory_mib, "policy": self.policy})
        answer = self._answer()
        return answer["pins"], answer["ns"]

    def stop(self, vmid):
        self._send({"stop": vmid})

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


def _nova_cell(topology, node, memory):
    cores = {topology.cpus[cpu].siblings & node.cpus for cpu in node.cpus}
    return {
        "id": node.id,
        "cpus": sorted(node.cpus),
        "memory_mib": memory[node.id],
        "siblings": [sorted(core) for core in cores],
    }


@dataclass
class Result:
    """Sums over one replay; the averages are over time."""

    vms: int = 0
    vcpus: int = 0
    node_crossings: int = 0
    l3_crossings: int = 0
    kinds_mixed: int = 0
    beside_others: int = 0
    seconds: float = 0.0
    shared_cores: float = 0.0
    imbalance: float = 0.0
    broken: float = 0.0
    times_ns: list = field(default_factory=list)
    kept: set = field(default_factory=set)


class Machine:
    """The judge: knows what is free under one policy and what could have been had."""

    def __init__(self, topology, others=frozenset()):
        self.topology = topology
        self.node = {cpu.id: cpu.node for cpu in topology.cpus.values() if cpu.online}
        self.l3 = {cpu.id: (cpu.node, cpu.l3) for cpu in topology.cpus.values() if cpu.online}
        self.nodes = {
            node: sum(1 for n in self.node.values() if n == node) for node in set(self.node.values())
        }
        self.tolerance = max(Counter(self.l3.values()).values()) / min(self.nodes.values())
        self.owner = {}
        self.others = others

    def fewest(self, group, vcpus, only=None):
        """The least groups that hold so many of the CPUs free now."""
        free = Counter(
            group[cpu] for cpu in group if cpu not in self.owner and (only is None or self.node[cpu] in only)
        )
        count = 0
        for size in sorted(free.values(), reverse=True):
            if vcpus <= 0:
                break
            vcpus -= size
            count += 1
        return count

    def judge(self, result, cpus):
        """What of this placement could have been had better with the CPUs that were free. Where somebody is
        confined, that is only to have got CPUs that are nobody's.
        """
        if self.others:
            free = len(self.node.keys() - self.owner.keys() - self.others)
            result.beside_others += max(0, len(self.others & set(cpus)) - max(0, len(cpus) - free))
            return
        shares = Counter(self.node[cpu] for cpu in cpus)
        result.node_crossings += len(shares) - self.fewest(self.node, len(cpus))
        if len(shares) == 1:
            least = min(
                self.fewest(self.l3, len(cpus), {node}) for node in self.nodes if self.fits(cpus, node)
            )
        else:  # the nodes and their shares are judged above; here what was made of them
            least = sum(self.fewest(self.l3, share, {node}) for node, share in shares.items())
        result.l3_crossings += len({self.l3[cpu] for cpu in cpus}) - least
        kinds = {self.topology.cpus[cpu].kind for cpu in cpus}
        result.kinds_mixed += len(kinds) > 1 and self.one_kind_fits(len(cpus))

    def fits(self, cpus, node):
        return sum(1 for cpu in self.node if cpu not in self.owner and self.node[cpu] == node) >= len(cpus)

    def one_kind_fits(self, vcpus):
        free = Counter(self.topology.cpus[cpu].kind for cpu in self.node if cpu not in self.owner)
        return max(free.values()) >= vcpus

    def observe(self, result, seconds, block):
        """Time averages. A place is `block` free CPUs of one kind on whole free cores of one L3 group;
        imbalance is how much fuller the fullest node is than the emptiest, in L3 groups beyond the first.
        """
        cores = {}
        for cpu, vmid in self.owner.items():
            cores.setdefault(self.topology.cpus[cpu].core, set()).add(vmid)
        used = Counter(self.node[cpu] for cpu in self.owner)
        fill = [used[node] / size for node, size in self.nodes.items()]
        free = [cpu for cpu in self.node if cpu not in self.owner]
        whole = Counter(
            (self.l3[cpu], self.topology.cpus[cpu].kind)
            for cpu in free
            if self.topology.cpus[cpu].core not in cores
        )
        possible = len(free) // block
        have = sum(size // block for size in whole.values())
        result.seconds += seconds
        result.shared_cores += seconds * sum(len(vms) > 1 for vms in cores.values())
        result.imbalance += seconds * max(0, (max(fill) - min(fill)) / self.tolerance - 1)
        result.broken += seconds * (1 - min(1, have / possible) if possible else 0)


def replay(policy, machine, vms, block, keep=None):
    """keep: the VMIDs that stay; others leave at once. None: all that the policy admits."""
    result = Result()
    departures = []
    clock = 0
    for vm in vms:
        while departures and departures[0][0] <= vm.arrival_s:
            when, vmid, cpus = heapq.heappop(departures)
            machine.observe(result, when - clock, block)
            clock = when
            policy.stop(vmid)
            for cpu in cpus:
                del machine.owner[cpu]
        machine.observe(result, vm.arrival_s - clock, block)
        clock = vm.arrival_s
        gc.collect(1)
        gc.disable()  # one decision is one short process in real life, which never collects
        cpus, took_ns = policy.start(vm)
        gc.enable()
        result.times_ns.append(took_ns)
        if cpus is None:
            continue
        assert len(set(cpus)) == vm.vcpus and not set(cpus) & machine.owner.keys()
        result.vms += 1
        result.vcpus += vm.vcpus
        if keep is not None and vm.vmid not in keep:
            policy.stop(vm.vmid)
            continue
        result.kept.add(vm.vmid)
        machine.judge(result, cpus)
        machine.owner.update(dict.fromkeys(cpus, vm.vmid))
        heapq.heappush(departures, (vm.arrival_s + vm.duration_s, vm.vmid, tuple(cpus)))
    return result


POLICIES = (("pxsched", Pxsched), ("Nova 34", Nova), ("stock order", Simple), ("random", Random))


def nova_python(given):
    if given:
        return given
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pxsched-bench/nova"
    python = home / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(home / "bin/pip"), "install", "-q", NOVA], check=True)
    return str(python)


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] / 1e6


COLUMNS = (
    "host", "policy", "VMs admitted", "vCPUs admitted", "avoidable node crossings", "avoidable L3 crossings",
    "avoidable mixes of kinds", "vCPUs avoidably on others' CPUs",
    "cores shared by two VMs", "imbalance beyond one L3 group",
    "fragmentation", "p50 ms", "p99 ms", "max ms",
)  # fmt: skip
# Among others, CPUs of nobody come before near ones, so nobody is judged by crossings and mixes; alone, there
# are no CPUs of others.
UNJUDGED_AMONG_OTHERS, UNJUDGED_ALONE = range(4, 7), range(7, 8)


def row(host, name, results):
    """One line of the table: the results of all seeds together."""
    times_ns = [took_ns for result in results for took_ns in result.times_ns]

    def total(attribute):
        return sum(getattr(result, attribute) for result in results)

    seconds = max(1, total("seconds"))
    return (
        host,
        name,
        str(total("vms")),
        str(total("vcpus")),
        str(total("node_crossings")),
        str(total("l3_crossings")),
        str(total("kinds_mixed")),
        str(total("beside_others")),
        f"{total('shared_cores') / seconds:.1f}",
        f"{total('imbalance') / seconds:.1f}",
        f"{100 * total('broken') / seconds:.0f} %",
        f"{percentile(times_ns, 0.5):.2f}",
        f"{percentile(times_ns, 0.99):.2f}",
        f"{max(times_ns) / 1e6:.2f}",
    )


def table(rows, unjudged, *, markdown):
    """unjudged: the columns to leave out, by number."""
    shown = [i for i in range(len(COLUMNS)) if i not in unjudged]
    cells = [[line[i] for i in shown] for line in [COLUMNS, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
    ]
    if markdown:
        lines.insert(1, "-|-".join("-" * width for width in widths))
        lines = [f"| {line} |" for line in lines]
    return "\n".join(lines)


def run(make, topology, memory, vms, seed, share, keep=None):
    others = others_of(topology, share, seed)
    policy = make(topology, memory, Smt.SHARE, seed, others)
    confined = frozenset().union(*(one.cpus for one in others[0]))
    result = replay(policy, Machine(topology, confined), vms, 8, keep)
    if isinstance(policy, Nova):
        policy.close()
    return result


def measure(host, topology, args):
    """The rows of one host."""
    memory = {node.id: len(node.cpus) * MIB_PER_CPU for node in topology.nodes if node.cpus}
    results = {name: [] for name, _ in POLICIES}
    for seed in range(1, args.seeds + 1):
        vms = arrivals(args.corpora, len(topology.online), args.arrivals, args.load, seed)
        nova = run(Nova, topology, memory, vms, seed, args.foreign)
        for name, make in POLICIES:
            if make is Nova:
                results[name].append(nova)
                continue
            keep = None if args.alone else nova.kept
            results[name].append(run(make, topology, memory, vms, seed, args.foreign, keep))
            assert args.alone or results[name][-1].kept == nova.kept, f"{name} refuses what Nova admits"
    return [row(host, name, results[name]) for name, _ in POLICIES]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, default=HERE.parent / "../shared/corpora")
    parser.add_argument("--nova", help="Python that has nova 34")
    parser.add_argument("--arrivals", type=int, default=1500, help="VMs in a run")
    parser.add_argument("--load", type=float, default=1.1, help="vCPUs offered per CPU, on average")
    parser.add_argument("--seeds", type=int, default=3, help="runs on each host, added up")
    parser.add_argument("--host", default="", help="only hosts with this in their name")
    parser.add_argument("--foreign", type=float, default=0.0, help="share of the cores that others hold")
    parser.add_argument("--alone", action="store_true", help="everybody keeps what he admits")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    Nova.python = nova_python(args.nova)
    with tempfile.TemporaryDirectory() as directory:
        machines = topologies(args.corpora, directory, HOSTS)
    machines["generated 2x144 SMT"] = large_machine()
    # What a process imports for its first decision is no part of a decision.
    Pxsched(large_machine(1, 1, 4), {0: 4096}, Smt.SHARE, 1).start(Vm(100, 0, 2, 1024, 1))
    rows = []
    for host, topology in machines.items():
        if args.host in host:
            rows += measure(host, topology, args)
            print(f"{host}: done", file=sys.stderr)
    unjudged = UNJUDGED_AMONG_OTHERS if args.foreign else UNJUDGED_ALONE
    print(table(rows, unjudged, markdown=args.markdown))


if __name__ == "__main__":
    main()
