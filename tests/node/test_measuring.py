"""Reading counters and memory: from the running kernel, and from trees that lack everything."""

import mmap
import os
import threading
import time

import pytest

from bench.models.cpu import machine
from pxsched.balance import cpu, samples
from pxsched.guest import balloon, schedstat
from pxsched.guest.config import GuestNode, Machine
from pxsched.guest.process import Process
from pxsched.guest.schedstat import Reader, Wanted
from pxsched.host import cpulist, pressure
from pxsched.host.topology import CpuKind
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.file import Ledger
from pxsched.node import guests, measuring
from pxsched.node.others import Other, Seen
from pxsched.node.sighting import Node, Sighting
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root
from pxsched.settings.files import Settings
from pxsched.settings.policy import NodeSettings, Policy, Prefer
from pxsched.value import replace

pytestmark = pytest.mark.measures


def write(base, path, text):
    target = base / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.mark.parametrize("keep", [False, True])
def test_counters_are_those_of_real_threads(keep):
    def burn():
        tids.append(threading.get_native_id())
        while not done:
            pass

    tids, done = [], False
    thread = threading.Thread(target=burn)
    thread.start()
    while not tids:
        time.sleep(0.001)
    reader = Reader(Root("/"), keep=keep)
    vm = Wanted(100, Process(os.getpid(), 1), tuple(tids))
    before = reader.read([vm])[100]
    time.sleep(0.2)
    after = reader.read([vm])[100]
    done = True
    thread.join()
    gained = sum(after.threads[tids[0]]) - sum(before.threads[tids[0]])
    assert gained == pytest.approx(after.at_ns - before.at_ns, rel=0.2)
    deadline = time.monotonic() + 5
    while reader.read([vm]) and time.monotonic() < deadline:
        time.sleep(0.01)  # Python's thread is over a moment before the kernel's
    assert reader.read([vm]) == {}
    reader.close()


def test_open_files_go_with_their_vm():
    reader = Reader(Root("/"), keep=True)
    before = len(os.listdir("/proc/self/fd"))
    vm = Wanted(100, Process(os.getpid(), 1), (os.getpid(),))
    reader.read([vm])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    reader.read([])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/fs/cgroup/qemu.slice/100.scope/cpu.stat", "usage_usec 5\nthrottled_usec 1500\n"),
        ("sys/fs/cgroup/cpu/qemu.slice/100.scope/cpu.stat", "nr_throttled 2\nthrottled_time 1500000\n"),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_throttling_is_read_from_either_hierarchy(tmp_path, path, text, keep):
    write(tmp_path, path, text)
    write(tmp_path, "proc/7/task/8/schedstat", "10 20 3\n")
    found = Reader(Root(str(tmp_path)), keep=keep).read([Wanted(100, Process(7, 1), (8,), limited=True)])
    assert found[100].throttled_ns == 1_500_000
    assert found[100].threads == {8: (10, 20)}


@pytest.mark.parametrize("text", ["", "10", "a b c", "10 20 30 40", "\0\xff"])
def test_a_damaged_counter_is_no_counter(tmp_path, text):
    write(tmp_path, "proc/7/task/8/schedstat", text)
    assert Reader(Root(str(tmp_path))).read([Wanted(100, Process(7, 1), (8, 9))]) == {}


def test_the_shrinkable_part_of_the_zfs_cache_counts_as_available(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal:  8388608 kB\nMemAvailable:  1048576 kB\n")
    assert pressure.host_memory(Root(str(tmp_path))).available_mib == 1024
    arc = f"13 1 0x01\nname type data\nc_min 4 {1 << 30}\nsize 4 {3 << 30}\n"
    write(tmp_path, "proc/spl/kstat/zfs/arcstats", arc)
    write(tmp_path, "proc/pressure/memory", "some avg10=9.00 avg60=0\nfull avg10=7.50 avg60=0.00\n")
    found = pressure.host_memory(Root(str(tmp_path)))
    assert found.available_mib == 1024
    assert found.arc_mib == 2048
    assert found.stalled == 7.5


def test_vms_have_no_more_than_a_limit_of_their_slice_leaves_them(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal:  8388608 kB\nMemAvailable:  4194304 kB\n")
    group = "sys/fs/cgroup/qemu.slice"
    write(tmp_path, f"{group}/memory.current", f"{3 << 30}\n")
    write(tmp_path, f"{group}/memory.stat", f"anon 1\ninactive_file {1 << 29}\nslab_reclaimable 0\nshmem 9\n")
    for high, most, left in (
        ("max", "max", 4096),
        ("max", f"{4 << 30}", 1536),
        (f"{3 << 30}", "max", 512),
        (f"{1 << 30}", f"{9 << 30}", 0),
        (f"{9 << 30}", "max", 4096),
        ("nonsense", "", 4096),
    ):
        write(tmp_path, f"{group}/memory.high", f"{high}\n")
        write(tmp_path, f"{group}/memory.max", f"{most}\n")
        assert pressure.host_memory(Root(str(tmp_path))).available_mib == left
    write(tmp_path, "proc/spl/kstat/zfs/arcstats", f"13 1 0x01\nc_min 4 0\nsize 4 {3 << 30}\n")
    for most, left, arc in ((2, 0, 0), (4, 1536, 0), (7, 4096, 512), (99, 4096, 3072)):
        write(tmp_path, f"{group}/memory.max", f"{most << 30}\n")
        write(tmp_path, f"{group}/memory.high", "max\n")
        found = pressure.host_memory(Root(str(tmp_path)))
        assert (found.available_mib, found.arc_mib) == (left, arc)


def test_what_a_process_maps_of_files_is_no_guests_memory(tmp_path):
    status = "Name:\tkvm\nRssAnon:\t 2097152 kB\nRssFile:\t   65536 kB\nRssShmem:\t  983040 kB\n"
    write(tmp_path, "proc/100/status", status)
    assert schedstat.resident_mib(Root(str(tmp_path)), 100) == 2048 + 960


def test_memory_that_a_process_shares_is_its_own(tmp_path):
    """As a guest's is, whose memory another process of the host serves (vhost-user, virtiofs)."""
    before = schedstat.resident_mib(Root("/"), os.getpid())
    with mmap.mmap(-1, 8 << 20) as shared:
        shared.write(b"x" * len(shared))
        assert 7 < schedstat.resident_mib(Root("/"), os.getpid()) - before < 12


def test_a_root_without_memory_information_has_none(tmp_path):
    assert pressure.host_memory(Root(str(tmp_path))) is None
    assert schedstat.resident_mib(Root(str(tmp_path)), 1) is None
    assert schedstat.pressure(Root(str(tmp_path)), 100) == {}


CLAIM = Claim(
    Placement(100, VmClass.SHARED, (frozenset((0,)),), frozenset((0,)), frozenset((0,))), State.RUNNING
)
OURS = Machine(memory_mib=2048, balloon_mib=512, shares=0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"balloon_mib": 0}, "no balloon"),
        ({"balloon_mib": None}, "minimum"),
        ({"shares": 500}, "Proxmox"),
        ({"hostpci": (object(),)}, "passed-through"),
        ({"hugepage_mib": 2}, "huge"),
    ],
)
def test_whose_balloon_is_not_ours(change, word):
    assert guests._excluded(OURS, CLAIM) == ""
    assert word in guests._excluded(replace(OURS, **change), CLAIM)


def test_a_policy_may_keep_a_guest_out():
    assert "policy" in guests._excluded(OURS, replace(CLAIM, policy=Policy(balloon=False)))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"last-update": "x", "stats": {}},
        {"last-update": 5, "stats": []},
        {"last-update": 0, "stats": {"stat-total-memory": 1, "stat-available-memory": 1}},
        {"last-update": 5, "stats": {"stat-total-memory": 1 << 64, "stat-available-memory": -1}},
        {"last-update": 5, "stats": {"stat-total-memory": True, "stat-available-memory": "1"}},
    ],
)
def test_statistics_that_make_no_sense_are_none(answer):
    assert balloon._reading(1 << 30, answer, 100.0).age_s is None


def test_a_guest_cannot_have_more_available_than_it_has():
    stats = {"stat-total-memory": 1 << 30, "stat-available-memory": 1 << 40, "stat-swap-in": 1 << 20}
    reading = balloon._reading(1 << 30, {"last-update": 98, "stats": stats}, 100.0)
    assert reading.available_mib == reading.total_mib == 1024
    assert reading.swapped_in_mib == 1
    assert reading.age_s == 2


def test_guests_that_do_not_answer_are_named_and_hold_nobody_up(tmp_path):
    import socket

    directory = tmp_path / "run/qemu-server"
    directory.mkdir(parents=True)
    mute = socket.socket(socket.AF_UNIX)
    mute.bind(str(directory / "100.qmp"))
    mute.listen(1)
    began = time.monotonic()
    found = balloon.read_all(Root(str(tmp_path)), [100, 101], patience_s=0.3)
    assert time.monotonic() - began < 1.5
    assert "greeting" in found[100]
    assert "socket" in found[101]
    mute.close()


# The balancer keeps what a VM prefers.


def placed(cpus, **policy):
    cpus = frozenset(cpus)
    placement = Placement(100, VmClass.SHARED, (cpus,) * 2, cpus, frozenset((0,)))
    return Claim(placement, State.RUNNING, Policy(**policy))


def node_of(topology):
    return Node(Root("/nowhere"), Settings(), topology)


@pytest.mark.parametrize(
    ("prefer", "home", "want"),
    [
        (Prefer.ANY, range(4), None),
        (Prefer.PERFORMANCE, range(4), set(range(4))),
        (Prefer.EFFICIENCY, range(4, 8), set(range(4, 8))),
        (Prefer.EFFICIENCY, range(4), set(range(8))),  # it found no room on the others
        (Prefer.PERFORMANCE, range(2, 6), set(range(8))),
    ],
)
def test_a_vm_is_offered_cpus_that_suit_it_as_well_as_its_home(prefer, home, want):
    topology = machine(cores=8)
    kinds = {cpu: CpuKind.PERFORMANCE if cpu < 4 else CpuKind.EFFICIENCY for cpu in range(8)}
    cpus = {cpu: replace(one, kind=kinds[cpu]) for cpu, one in topology.cpus.items()}
    node = node_of(replace(topology, cpus=cpus))
    assert measuring._allowed(placed(home, prefer=prefer), node.topology) == want


def test_a_vm_that_prefers_a_large_cache_is_not_moved_to_a_small_one():
    topology = machine(caches=2)
    sizes = {0: 96 << 20, 1: 32 << 20}
    node = node_of(replace(topology, l3s=tuple(replace(l3, size_bytes=sizes[l3.id]) for l3 in topology.l3s)))
    assert measuring._allowed(placed(range(4), prefer=Prefer.CACHE), node.topology) == set(range(4))
    assert measuring._allowed(placed(range(4, 8), prefer=Prefer.CACHE), node.topology) == set(range(8))


def seen_as(node: Node, claim: Claim, config: Machine):
    claim = replace(claim, process=Process(7, 8))
    ledger = Ledger()
    ledger.claims[claim.vmid] = claim
    return measuring.vm(Sighting(claim.vmid, config, Process(7, 8)), ledger, {}, node, Seen(1, ()))


def test_a_vm_is_not_offered_cpus_away_from_the_memory_it_is_bound_to():
    node = node_of(machine(nodes=2))
    here = node.topology.node_by_id[1].cpus
    bound = (GuestNode(frozenset({0, 1}), 512, frozenset({1}), "bind"),)
    claim = placed(here)
    vm = seen_as(node, claim, Machine(numa=True, guest_nodes=bound))
    assert (vm.movable, vm.allowed) == (True, here)
    assert seen_as(node, claim, Machine(numa=True)).allowed is None


def moves(base, fenced: dict[str, str]) -> set[frozenset[int]]:
    """Where four busy VMs on four of sixteen CPUs are sent. fenced: the CPUs that groups say they have."""
    node = replace(node_of(machine(nodes=2, caches=2)), root=Root(str(base)))
    home, ledger = node.topology.l3s[0].cpus, Ledger()
    for group, cpus in fenced.items():
        for name in ("cpuset.cpus", "cpuset.cpus.effective"):
            write(base, f"sys/fs/cgroup/{group}/{name}", f"{cpus}\n")
    busy = samples.Rate(0.5, 0.5, 1.0)
    vms = []
    for vmid in range(100, 104):
        claim = placed(home)
        placement = replace(claim.placement, vmid=vmid)
        ledger.claims[vmid] = replace(claim, placement=placement, process=Process(vmid, 8))
        uses = {vmid: samples.Use(vmid, 8, 2.0, (busy,) * 2, samples.Rate(1.0, 1.0, 2.0))}
        sighting = Sighting(vmid, Machine(cores=2), Process(vmid, 8))
        vms.append(measuring.vm(sighting, ledger, uses, node, Seen(1, ())))
    pool = measuring.pool(node, ledger)
    outcome = cpu.rebalance(vms, node.topology, pool, cpu.State(), NodeSettings(moves=8), 100.0)
    return {move.after for move in outcome.moves}


def test_the_balancer_sends_nobody_out_of_a_fence(tmp_path):
    assert any(not after <= frozenset(range(8)) for after in moves(tmp_path / "open", {}))
    for number, fenced in enumerate(({"qemu.slice": "0-7"}, {"": "0-5", "rt.slice": "6-15"})):
        inside = cpulist.parse(next(iter(fenced.values())))
        found = moves(tmp_path / str(number), fenced)
        assert found and all(after <= inside for after in found)
    own = {f"qemu.slice/{vmid}.scope": "0-3" for vmid in range(100, 104)}
    assert moves(tmp_path / "scopes", own) == set()


def test_a_vm_whose_vcpus_are_apart_for_a_reason_stays():
    node = node_of(machine(nodes=2))
    one, other = (node.topology.node_by_id[number].cpus for number in (0, 1))
    claim = placed(one)
    apart = replace(claim, placement=replace(claim.placement, vcpus=(one, other)))
    assert not seen_as(node, apart, Machine()).movable
    isolated = node_of(replace(node.topology, isolated=one))
    assert seen_as(node, claim, Machine()).movable
    assert not seen_as(isolated, claim, Machine()).movable


# Those who are not ours are load where they may run.


def test_a_vm_that_is_not_opted_in_is_load_where_its_threads_may_run_and_a_container_where_its_group_may():
    qemu, node = Process(7, 8), node_of(machine())
    rate = samples.Rate(0.5, 0.25, 0.75)
    uses = {200: samples.Use(200, 8, 2.0, (rate, rate), samples.Rate(1.0, 0.5, 1.5))}
    seen = Seen(1, (Other(200, qemu, frozenset({2, 3}), 1.0), Other(101, None, frozenset({1}), 0.5)))
    sighting = Sighting(200, Machine(affinity=(0, 1)), qemu)
    vm = measuring.vm(sighting, Ledger(), uses, node, seen)
    assert (vm.vcpus, vm.use, vm.movable) == ((frozenset({2, 3}),) * 2, uses[200], False)
    (container,) = measuring.containers(seen, 2.0)
    assert (container.vmid, container.vcpus, container.movable) == (101, (frozenset({1}),), False)
    assert container.use.total.demand == 0.5
    assert measuring.containers(Seen(1, (Other(101, None, frozenset({1})),)), 2.0) == []


def test_what_a_claim_says_is_read_again_when_it_says_something_else(monkeypatch):
    node, claim = node_of(machine()), placed(range(4))
    first = seen_as(node, claim, Machine())
    assert first.allowed is None
    monkeypatch.setattr(measuring, "_is_fixed", None)
    assert seen_as(node, claim, Machine()) == first
    monkeypatch.undo()
    fenced = replace(claim, policy=replace(claim.policy, cpus="0-1"))
    assert seen_as(node, fenced, Machine()).allowed == {0, 1}
    assert seen_as(node, replace(claim, weight=200), Machine()).weight == 200
