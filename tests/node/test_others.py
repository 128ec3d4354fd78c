"""Who else is on the node: real processes and control groups where this machine has them, and trees shaped as
Proxmox makes them.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pxsched.guest import container, process
from pxsched.guest.process import Process
from pxsched.host import cgroup, cputime
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.node import claims, observing, others
from pxsched.node import sighting as nodes
from pxsched.node.observing import Observer
from pxsched.node.others import Other, Seen
from pxsched.root import Root
from pxsched.value import replace

CGROUP = "sys/fs/cgroup"
SLEEPER = "import sys, time; print('ready', flush=True); time.sleep(600)"
BURNER = "import sys; print('ready', flush=True)\nwhile True: pass"
two_cpus = pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1")


def put(base, path, text):
    target = Path(base, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Passes that follow each other sooner than the timer's."""
    monkeypatch.setattr(observing, "LEAST_NS", 500_000_000)


@pytest.fixture
def live(tmp_path):
    """A root whose /proc is the real one."""
    (tmp_path / "proc").symlink_to("/proc")
    put(tmp_path, "run/pxsched/.keep", "")
    put(tmp_path, f"{CGROUP}/cgroup.controllers", "cpuset cpu memory")
    put(tmp_path, f"{CGROUP}/cpuset.cpus.effective", "0-7")
    put(tmp_path, "sys/devices/system/cpu/online", "0-1")
    for cpu in (0, 1):
        put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", str(cpu))
    return Root(str(tmp_path))


@pytest.fixture
def start(live):
    """Processes that QEMU's pid files name, as Proxmox starts them."""
    running = []

    def begin(vmid, cpus, program=SLEEPER):
        words = ["-pidfile", f"/var/run/qemu-server/{vmid}.pid"]
        vm = subprocess.Popen(
            ["taskset", "--cpu-list", cpus, sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(vm)
        assert vm.stdout.readline() == "ready\n"
        put(live.base, f"run/qemu-server/{vmid}.pid", str(vm.pid))
        return vm

    yield begin
    for vm in running:
        vm.kill()
        vm.communicate()


def make_container(base, vmid, cpus, *, used_us=0, populated=True):
    group = f"{CGROUP}/lxc/{vmid}"
    put(base, f"{group}/cpuset.cpus.effective", cpus)
    put(base, f"{group}/cpu.stat", f"usage_usec {used_us}\nuser_usec 0\n")
    put(base, f"{group}/cgroup.events", f"populated {int(populated)}\nfrozen 0\n")
    put(base, f"{group}/memory.numa_stat", "anon N0=2097152 N1=1048576\nfile N0=99 N1=0\n")


@two_cpus
def test_a_vm_that_is_not_opted_in_is_where_its_threads_may_run_whatever_etc_pve_says(live, start):
    start(200, "1")
    (other,) = others.known(live, set()).others
    assert (other.name, other.cpus, other.load) == ("VM 200", {1}, None)
    assert others.known(live, {200}).others == ()


def test_a_container_is_where_its_own_processes_may_run_which_are_one_group_below(tmp_path):
    put(tmp_path, f"{CGROUP}/cgroup.controllers", "cpuset cpu memory")
    make_container(tmp_path, 101, "0-7")
    put(tmp_path, f"{CGROUP}/lxc/101/ns/cpuset.cpus.effective", "1,5")
    found = others.container_now(Root(str(tmp_path)), 101)
    assert found is not None and found.cpus == {1, 5}


@two_cpus
def test_containers_are_found_by_their_groups_and_named(live, start):
    make_container(live.base, 101, "0")
    make_container(live.base, 102, "1", populated=False)
    put(live.base, f"{CGROUP}/lxc/not-a-container/cgroup.procs", "")
    assert container.running(live) == [101]
    (other,) = others.known(live, set()).others
    assert (other.name, other.cpus) == ("container 101", {0})


@pytest.mark.measures
@two_cpus
def test_what_they_use_and_what_nobody_explains_is_measured(live, start):
    vm = start(200, "1", BURNER)
    make_container(live.base, 101, "0", used_us=1_000_000)
    observer = Observer(live)
    sightings = [nodes.sight(live, 200)]
    observer.look(Ledger(), sightings)
    time.sleep(0.8)
    make_container(live.base, 101, "0", used_us=1_400_000)
    seen = observer.look(Ledger(), sightings)
    by_name = {other.name: other for other in seen.others}
    ran = by_name["VM 200"].load
    assert 0.01 < ran <= 1.1
    assert by_name["VM 200"].cpus == {1}
    assert by_name["container 101"].load == pytest.approx(0.5, abs=0.1)
    assert by_name["container 101"].memory_mib == {0: 2, 1: 1}
    assert set(seen.busy) <= set(os.sched_getaffinity(0)) | set(range(os.cpu_count()))
    assert seen.busy.get(1, 0.0) <= 1.05 - min(1.0, ran) + 0.1, "the VM's own work is not the host's"
    assert vm.poll() is None


@two_cpus
def test_a_hook_believes_the_timer_and_looks_itself_at_who_came_since(live, start):
    start(200, "1", BURNER)
    observer = Observer(live)
    observer.look(Ledger(), [nodes.sight(live, 200)])
    measured = json.loads(Path(live.base, others.FILE).read_text())
    measured["others"][0][3] = 0.75
    measured["busy"] = {"0": 0.5}
    put(live.base, others.FILE, json.dumps(measured))
    start(201, "0")
    make_container(live.base, 101, "0")
    seen = others.known(live, set())
    assert [(one.name, one.cpus, one.load) for one in seen.others] == [
        ("VM 200", {1}, 0.75),
        ("VM 201", {0}, None),
        ("container 101", {0}, None),
    ]
    assert seen.busy == {0: 0.5}


@two_cpus
def test_a_hook_lists_no_threads_and_of_those_the_timer_saw_it_reads_the_pid_file_only(
    live, start, monkeypatch
):
    start(200, "1")
    Observer(live).look(Ledger(), [nodes.sight(live, 200)])
    monkeypatch.setattr(process, "Threads", lambda *_: pytest.fail("threads are listed"))
    asked = []
    allowed = process.allowed
    monkeypatch.setattr(process, "allowed", lambda root, tid: asked.append(tid) or allowed(root, tid))
    assert [one.name for one in others.known(live, set()).others] == ["VM 200"]
    assert asked == []
    late = start(201, "0")
    assert [one.name for one in others.known(live, set()).others] == ["VM 200", "VM 201"]
    assert asked == [late.pid]


@two_cpus
def test_of_a_vm_that_was_started_anew_the_old_measurement_is_not_believed(live, start):
    start(200, "1")
    Observer(live).look(Ledger(), [nodes.sight(live, 200)])
    start(200, "0")
    (other,) = others.known(live, set()).others
    assert (other.cpus, other.load) == ({0}, None)


@two_cpus
@pytest.mark.parametrize("fault", ["stale", "from the future", "another boot", "damaged", "missing"])
def test_a_file_that_cannot_be_believed_leaves_what_others_use_unknown(live, start, fault):
    start(200, "1")
    Observer(live).look(Ledger(), [nodes.sight(live, 200)])
    document = json.loads(Path(live.base, others.FILE).read_text())
    document["others"][0][3], document["busy"] = 0.9, {"0": 1.0}
    ages = {"stale": -int(others.STALE_S * 1e9) - 1, "from the future": 3600 * 10**9}
    document["at_ns"] = max(0, ledgers.now_ns() + ages.get(fault, 0))
    if fault == "another boot":
        document["boot_id"] = "another"
    put(live.base, others.FILE, "{" if fault == "damaged" else json.dumps(document))
    if fault == "missing":
        os.unlink(live.path(others.FILE))
    seen = others.known(live, set())
    assert [(other.cpus, other.load) for other in seen.others] == [({1}, None)]
    assert seen.busy == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"others": [[200, [1, 2], "0-3", 0.5]]},
        {"others": [[200, 1, "0-3", 0.5, {}]]},
        {"others": [[200, [1, 2], "0-", 0.5, {}]]},
        {"others": [[200, [1, 2], "0-3", "much", {}]]},
        {"others": [[200, [1, 2], "0-3", 0.5, {"x": 1}]]},
        {"others": {}},
        {"busy": {"0": 2}},
        {"busy": [0]},
        {"at_ns": -1},
    ],
)
def test_a_damaged_file_is_no_file(live, damage):
    whole = {"boot_id": others.boot_id(live), "at_ns": 1, "others": [], "busy": {}}
    put(live.base, others.FILE, json.dumps(whole))
    assert others.load(live) == Seen(1)
    put(live.base, others.FILE, json.dumps(whole | damage))
    assert others.load(live) is None
    assert observing._load(live)[1] == Seen(0), "and a pass begins anew"


def test_what_is_written_is_read_again(live):
    seen = Seen(
        5,
        (
            Other(200, Process(7, 8), frozenset({1, 9}), 0.5, {0: 3}),
            Other(101, None, frozenset({2})),
        ),
        {3: 0.25},
    )
    observing._save(live, seen, observing.Counters(5, {200: 7}, {0: 9}))
    assert others.load(live) == seen
    counters, again = observing._load(live)
    assert (counters.used_ns, counters.idle_ns, again) == ({200: 7}, {0: 9}, seen)


def test_where_nobody_runs_nothing_is_left_behind(live):
    put(live.base, others.FILE, "{}")
    Observer(live).look(Ledger(), [])
    assert not os.path.exists(live.path(others.FILE))


def test_time_that_a_hypervisor_steals_is_no_work_of_ours(tmp_path):
    put(tmp_path, "proc/stat", "cpu  9 9 9 9 9 9 9 9\ncpu0 10 0 5 70 3 1 1 27 4 0\ncpu7 1 2\nintr 5 6\n")
    assert cputime.idle_ns(Root(str(tmp_path))) == {0: 100 * cputime.TICK_NS}
    assert cputime.busy({0: 0, 1: 5}, {0: 25, 2: 9}, 100) == {0: 0.75}
    assert cputime.idle_ns(Root(str(tmp_path / "nothing"))) == {}


@pytest.mark.parametrize(
    ("path", "text", "want"),
    [
        ("lxc/101/cpu.stat", "usage_usec 12\nuser_usec 5\n", 12_000),
        ("cpuacct/lxc/101/cpuacct.usage", "345\n", 345),
        ("lxc/101/cpu.stat", "user_usec 5\n", None),
    ],
)
def test_a_groups_cpu_time_is_read_from_either_hierarchy(tmp_path, path, text, want):
    put(tmp_path, f"{CGROUP}/{path}", text)
    assert cgroup.used_ns(Root(str(tmp_path)), "lxc/101") == want


# Placement is told.


@pytest.fixture
def told(monkeypatch):
    """The hosts that placement was asked about."""
    from pxsched.placement import search

    hosts = []
    place = search.place

    def spy(host, holdings, wish):
        hosts.append(host)
        return place(host, holdings, wish)

    monkeypatch.setattr(search, "place", spy)
    return hosts


def opt_in(root, vmid):
    put(root.base, "etc/hostname", "here")
    text = "cores: 1\nmemory: 16\nhookscript: local:snippets/pxsched\n"
    put(root.base, f"etc/pve/nodes/here/qemu-server/{vmid}.conf", text)


@two_cpus
def test_placement_is_told_of_those_who_are_not_ours_and_of_the_hosts_own_work(live, start, told):
    opt_in(live, 100)
    start(200, "1", BURNER)
    make_container(live.base, 101, "0-1")
    Observer(live).look(Ledger(), [nodes.sight(live, 200)])
    document = json.loads(Path(live.base, others.FILE).read_text())
    put(live.base, others.FILE, json.dumps(document | {"busy": {"0": 0.5}}))
    start(100, "0-1")
    claims.update(nodes.open_node(live, {}), Ledger(), [nodes.sight(live, 100)])
    (host,) = told
    assert [(one.name, one.cpus) for one in host.foreign] == [("VM 200", {1}), ("container 101", {0, 1})]
    assert host.busy == {0: 0.5}


@two_cpus
def test_vms_that_are_about_to_be_placed_are_no_strangers_to_each_other(live, start, told):
    for vmid in (100, 102):
        opt_in(live, vmid)
        start(vmid, "0-1")
    ledger = Ledger()
    claims.update(nodes.open_node(live, {}), ledger, [nodes.sight(live, vmid) for vmid in (100, 102)])
    assert ledger.claims.keys() == {100, 102}
    assert [host.foreign for host in told] == [(), ()]


@two_cpus
def test_a_pass_that_places_nobody_does_not_look_for_others(live, start, monkeypatch):
    opt_in(live, 100)
    start(100, "0-1")
    ledger, node = Ledger(), nodes.open_node(live, {})
    claims.update(node, ledger, [nodes.sight(live, 100)])
    monkeypatch.setattr(others, "known", lambda *_: pytest.fail("nobody has to be placed"))
    claims.update(node, ledger, [nodes.sight(live, 100)])
    assert 100 in ledger.claims


# Real control groups, shaped as Proxmox's.


@pytest.fixture
def real_group(tmp_path):
    """A group of containers on the running kernel, with one container that burns CPU 0."""
    base = Path("/sys/fs/cgroup")
    if not os.access(base / "cpuset", os.W_OK) or not (base / "cpuacct").exists():
        pytest.skip("needs cgroup v1 with cpuset and cpuacct that may be written")
    made, burner = [], None
    try:
        for controller in ("cpuset", "cpuacct"):
            for group in ("lxc", "lxc/98001"):
                path = base / controller / group
                if not path.exists():
                    path.mkdir()
                    made.append(path)
        for group in ("lxc", "lxc/98001"):
            (base / "cpuset" / group / "cpuset.cpus").write_text("0")
            (base / "cpuset" / group / "cpuset.mems").write_text("0")
        burner = subprocess.Popen([sys.executable, "-c", BURNER], stdout=subprocess.PIPE, text=True)
        burner.stdout.readline()
        for controller in ("cpuset", "cpuacct"):
            (base / controller / "lxc/98001/cgroup.procs").write_text(str(burner.pid))
        (tmp_path / "sys/fs").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup").symlink_to(base)
        (tmp_path / "proc").symlink_to("/proc")
        put(tmp_path, "run/pxsched/.keep", "")
        yield Root(str(tmp_path))
    finally:
        if burner is not None:
            burner.kill()
            burner.communicate()
        for path in reversed(made):
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                try:
                    path.rmdir()
                    break
                except OSError:
                    time.sleep(0.02)  # the kernel is still clearing it


@two_cpus
@pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")
def test_a_real_containers_cpus_and_use_are_those_of_its_group(real_group):
    def used_ns() -> int:
        return int(Path("/sys/fs/cgroup/cpuacct/lxc/98001/cpuacct.usage").read_text())

    observer = Observer(real_group)
    observer.look(Ledger(), [])
    before, begin = used_ns(), time.monotonic_ns()
    time.sleep(0.8)
    least = (used_ns() - before) / (time.monotonic_ns() - begin)
    found = {other.vmid: other for other in observer.look(Ledger(), []).others}
    assert found[98001].cpus == {0}
    assert least > 0 and found[98001].load == pytest.approx(least, rel=0.5)


# Case: exclusive CPUs over a foreign affinity.


def test_the_affinity_of_running_vms_that_are_not_ours_is_seen_on_a_captured_machine(tmp_path):
    for vmid, pid, cpus in ((200, 12000, "1-2,9-10"), (201, 40000, "3,11")):
        put(tmp_path, f"run/qemu-server/{vmid}.pid", f"{pid}\n")
        put(tmp_path, f"proc/{pid}/cmdline", f"kvm\0-pidfile\0/var/run/qemu-server/{vmid}.pid\0")
        put(tmp_path, f"proc/{pid}/stat", f"{pid} (kvm) S " + " ".join(["1"] * 18) + " 5000 0")
        put(tmp_path, f"proc/{pid}/status", f"Name:\tkvm\nCpus_allowed_list:\t{cpus}\n")
    seen = others.known(Root(str(tmp_path)), {100})
    assert [(one.name, sorted(one.cpus)) for one in seen.others] == [
        ("VM 200", [1, 2, 9, 10]),
        ("VM 201", [3, 11]),
    ]
    assert replace(seen.others[0], process=None).name == "container 200"
