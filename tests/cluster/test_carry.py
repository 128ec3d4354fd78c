"""Moves are made through Proxmox: checked, followed to their end, and not one more after a failure."""

import pytest

from pxsched.cluster import carry, planner, view
from pxsched.cluster.carry import Carrier, Pace
from pxsched.cluster.known import Known
from pxsched.errors import UserError
from pxsched.proxmox.connection import Login, remote
from tests.cluster.conftest import Cluster
from tests.cluster.proxmox import Proxmox
from tests.optin.api_server import TOKEN, make_certificate

QUICK = Pace(0.01, 30.0, 30.0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificate")
    make_certificate(directory)
    return directory


class Run:
    """Two VMs that run on pve1, which is to be emptied."""

    def __init__(self, cluster: Cluster, certificate) -> None:
        self.cluster = cluster
        for vmid in (100, 101):
            cluster.vm("pve1", vmid, "cores: 2\n", running=True)
        cluster.publish()
        self.proxmox = Proxmox(certificate, cluster)
        self.api = remote(Login(self.proxmox.host, TOKEN, ca=str(self.proxmox.certificate)))
        self.said: list[str] = []

    def known(self) -> Known:
        return Known(view.look(self.cluster.root("pve1")))

    def moves(self):
        known = self.known()
        stopped = known.stopped("pve1")
        return planner.plan(known.sheets(), known.guests(), known, drain="pve1", stopped=stopped).moves

    def go(self, moves=None, pace: Pace = QUICK) -> str:
        """Carries it out; what it failed with, or nothing."""
        try:
            found = self.moves() if moves is None else moves
            Carrier(self.known, self.api, self.said.append, pace).carry_out(found)
        except UserError as error:
            return str(error)
        return ""

    def on(self, name: str) -> set[int]:
        return {int(path.stem) for path in (self.cluster.pve / f"nodes/{name}/qemu-server").iterdir()}


@pytest.fixture
def going(pair, certificate):
    found = Run(pair, certificate)
    yield found
    found.proxmox.close()


def test_the_moves_are_made_one_after_the_other_and_followed(going):
    assert going.go() == ""
    assert going.on("pve2") == {100, 101} and going.on("pve1") == set()
    requests = going.proxmox.requests
    assert [(method, path) for method, path, _ in requests if "tasks" not in path] == [
        (method, f"nodes/pve1/qemu/{vmid}/migrate") for vmid in (100, 101) for method in ("GET", "POST")
    ]
    assert requests[1][2] == {"target": "pve2", "online": "1"}
    assert going.said[-1] == "2 of 2 moves are made"


def test_a_stopped_vm_is_moved_as_one_and_only_while_it_is(going):
    going.cluster.vm("pve1", 102, "cores: 2\n")
    going.proxmox.stopped.add(102)
    moves = going.moves()
    assert [(move.vmid, move.to is None, move.cost_mib) for move in moves][-1] == (102, True, 0)
    going.proxmox.stopped.clear()
    assert "VM 102 to pve2: it was started, or stopped, since the plan was made" in going.go(moves[-1:])
    going.proxmox.stopped.add(102)
    assert going.go(moves) == "" and going.on("pve2") == {100, 101, 102}
    asked = [params for _, path, params in going.proxmox.requests if "/102/" in path]
    assert asked[-1] == {"target": "pve2"}


def test_a_vm_that_was_stopped_meanwhile_is_left(going):
    moves = going.moves()
    going.cluster.vm("pve1", 100, "cores: 2\n")
    for path in (going.cluster.base / "pve1/run/qemu-server").glob("100.pid"):
        path.unlink()
    going.cluster.forget("pve1", 100)
    assert "it was started, or stopped, since" in going.go(moves[:1]) and going.proxmox.requests == []


def test_local_disks_are_copied_only_where_there_are_some(going):
    going.proxmox.local_disks = [{"volid": "thin:vm-100-disk-0", "size": 1 << 30}]
    assert going.go(going.moves()[:1]) == ""
    assert going.proxmox.requests[1][2] == {"target": "pve2", "online": "1", "with-local-disks": "1"}


@pytest.mark.parametrize("status", ["migration aborted", "migration problems", "unexpected status"])
def test_after_a_failure_nothing_more_is_begun(going, status):
    going.proxmox.exits[100] = status
    said = going.go()
    assert f"VM 100 to pve2: its task failed: {status}; 0 of 2 moves are made, none was begun" in said
    assert going.proxmox.asked == [("POST", "nodes/pve1/qemu/100/migrate")]
    assert going.on("pve1") == {100, 101}


def test_warnings_are_told_and_are_no_failure(going):
    going.proxmox.exits[100] = "WARNINGS: 2"
    assert going.go() == "" and any("moved, with warnings" in line for line in going.said)


def test_a_task_that_says_ok_without_the_vm_having_moved_is_a_failure(going):
    going.proxmox.cluster = type("Nowhere", (), {"names": going.cluster.names, "move": lambda *_: None})()
    assert "its migration has ended, and it is on pve1" in going.go()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, "cluster not ready - no quorum?", {"data": None}), "the cluster has no quorum; nothing"),
        ((500, "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout", {"data": None}),
         "the VM is busy (backup, migration, snapshot); try again later"),
        ((595, "No route to host", {"data": None}), "No route to host"),
        ((400, "Parameter verification failed.", {"data": None, "errors": {"target": "is local node."}}),
         "target: is local node."),
        ((403, "Permission check failed (/vms/100, VM.Migrate)", {"data": None}), "lacks a permission"),
        ((200, "OK", {"data": None}), "Proxmox began no task"),
    ],
)  # fmt: skip
def test_what_proxmox_refuses_ends_the_run_with_its_words(going, answer, said):
    going.proxmox.answers["POST", "nodes/pve1/qemu/100/migrate"] = answer
    assert said in going.go()
    assert going.proxmox.asked == [("POST", "nodes/pve1/qemu/100/migrate")]
    assert going.on("pve1") == {100, 101}


def test_proxmoxs_own_precondition_is_asked_first(going):
    going.proxmox.blocked["pve2"] = {"unavailable_storages": ["local-zfs"]}
    assert "Proxmox does not allow it: unavailable storages: local-zfs" in going.go()
    assert going.proxmox.asked == []


def test_a_node_that_does_not_answer_for_a_while_is_waited_for(going):
    going.proxmox.lost = 3
    assert going.go() == "" and going.on("pve2") == {100, 101}


def test_one_that_stays_away_is_given_up_and_its_task_goes_on(going):
    going.proxmox.lost = 10**6
    assert "No route to host; its task goes on" in going.go(pace=Pace(0.01, 0.1, 0.1))
    assert len(going.proxmox.asked) == 1


def test_on_ctrl_c_what_runs_goes_on_and_nothing_more_is_begun(going, monkeypatch):
    looks = 0

    def interrupted(_seconds):
        nonlocal looks
        looks += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(carry.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        going.go()
    assert looks == 1 and len(going.proxmox.asked) == 1
    assert "VM 100 is left to its migration: UPID:pve1:" in going.said[-1]
    assert not [request for request in going.proxmox.requests if request[0] == "DELETE"]


# What Proxmox does not ask is asked again before each move.


def test_without_quorum_nothing_is_begun(going):
    moves = going.moves()
    going.cluster.corosync(quorate=0)
    assert "the cluster has no quorum" in going.go(moves) and going.proxmox.requests == []


def test_a_move_that_runs_when_quorum_is_lost_is_followed_and_nothing_more_is_begun(going):
    going.proxmox.on_poll = lambda: going.cluster.corosync(quorate=0)
    assert "VM 101 to pve2: the cluster has no quorum; 1 of 2 moves are made" in going.go()
    assert going.on("pve2") == {100} and len(going.proxmox.asked) == 1


def test_a_target_that_went_offline_is_not_tried(going):
    moves = going.moves()
    going.cluster.corosync(offline=("pve2",))
    assert "pve2: it is offline" in going.go(moves) and going.proxmox.requests == []


def test_memory_that_is_gone_since_is_noticed(going):
    moves = going.moves()
    going.cluster.vm("pve1", 100, "cores: 2\nmemory: 99999999\n")
    assert "this is no longer so as it was planned: VM 100 does not fit on pve2: needs" in going.go(moves)
    assert going.proxmox.requests == []


def test_a_vm_that_was_moved_meanwhile_is_not_moved_again(going):
    moves = going.moves()
    going.cluster.move(100, "pve1", "pve2")
    assert "it is not on pve1 any more" in going.go(moves)


def test_a_cpu_type_that_copies_the_host_is_compared(going):
    for name, flags in (("pve1", "fpu avx"), ("pve2", "fpu")):
        path = going.cluster.base / name / "proc/cpuinfo"
        path.unlink(missing_ok=True)
        path.write_text(f"vendor_id\t: GenuineIntel\nmodel name\t: X\nflags\t\t: {flags}\n")
    moves = going.moves()
    going.cluster.vm("pve1", 100, "cores: 2\ncpu: host\n")
    going.cluster.publish()
    assert "CPU type host: pve2 has another processor (X, without avx)" in going.go(moves)


def test_a_cpu_type_that_proxmox_on_the_target_does_not_know_is_not_tried(going):
    going.cluster.vm("pve1", 100, "cores: 2\ncpu: x86-64-v9-new\n")
    path = "nodes/pve2/capabilities/qemu/cpu"
    going.proxmox.answers["GET", path] = (200, "OK", {"data": [{"name": "kvm64", "custom": 0}]})
    assert "Proxmox on pve2 knows no CPU type x86-64-v9-new" in going.go() and going.proxmox.asked == []
    going.proxmox.answers["GET", path] = (200, "OK", {"data": [{"name": "x86-64-v9-new", "custom": 0}]})
    assert going.go() == ""
    assert [path for _, path, _ in going.proxmox.requests if "capabilities" in path] == [path] * 2


def test_who_has_moved_and_was_not_published_again_counts_where_it_is(going):
    """The second VM is placed beside the first, though pve2 has not said yet that it has it."""
    going.cluster.settings('[defaults]\nclass = "dedicated"\n')
    assert going.go() == ""
    known = going.known()
    sheet = known.sheets()["pve2"]
    assert not known.sheets()["pve1"].tenants
    assert {100, 101} <= {*sheet.tenants} and not sheet.tenants[100].held.cpus & sheet.tenants[101].held.cpus
    assert {guest.vmid: guest.rested_s for guest in known.guests()} == {100: 0.0, 101: 0.0}


# HA's guests.


@pytest.fixture
def by_ha(going):
    going.cluster.put("ha/resources.cfg", "vm: 100\n\tstate started\n")
    return going


def test_a_guest_of_ha_is_moved_by_ha_and_followed_to_its_end(by_ha):
    assert by_ha.go() == "" and by_ha.on("pve2") == {100, 101}
    assert by_ha.proxmox.asked == [
        ("POST", "cluster/ha/resources/vm:100/migrate"), ("POST", "nodes/pve1/qemu/101/migrate"),
    ]  # fmt: skip
    wish = next(params for method, path, params in by_ha.proxmox.requests if "ha/resources" in path)
    assert wish == {"node": "pve2"}


def test_a_migration_of_ha_that_fails_ends_the_run_though_its_task_said_ok(by_ha):
    by_ha.proxmox.ha_fails.add(100)
    assert "VM 100 to pve2: HA's migration failed" in by_ha.go()
    assert len(by_ha.proxmox.asked) == 1 and by_ha.on("pve1") == {100, 101}


def test_a_wish_that_ha_does_not_take_is_given_up(by_ha):
    by_ha.proxmox.ha_ignores.add(100)
    assert "HA has not taken the wish" in by_ha.go(pace=Pace(0.01, 0.2, 0.1))


def test_what_keeps_it_for_ha_is_said(by_ha):
    data = {"sid": "vm:100", "blocking-resources": [{"sid": "vm:300", "cause": "resource-affinity"}]}
    by_ha.proxmox.answers["POST", "cluster/ha/resources/vm:100/migrate"] = (200, "OK", {"data": data})
    assert "HA will not: sid: vm:300; cause: resource-affinity keeps it" in by_ha.go()


def test_an_error_of_ha_is_said(by_ha):
    status = '{"service_status": {"vm:100": {"state": "error", "node": "pve1"}}}'
    by_ha.cluster.put("ha/manager_status", status)
    by_ha.proxmox.ha_ignores.add(100)
    assert "HA holds it in an error" in by_ha.go()


def test_a_guest_that_came_to_ha_since_is_not_moved_behind_its_back(going):
    moves = going.moves()
    going.cluster.put("ha/resources.cfg", "vm: 100\n\tstate started\n")
    assert "it came to HA, or left it, since the plan was made" in going.go(moves)
    assert going.proxmox.asked == []


@pytest.mark.slow
def test_the_command_makes_the_moves_only_when_asked(going, run, monkeypatch):
    monkeypatch.setattr("pxsched.cluster.commands.local_api", lambda root: going.api)
    monkeypatch.setattr("pxsched.cluster.carry.Pace.poll_s", 0.01)
    assert run(going.cluster, "pve1", "cluster", "plan", "--drain", "pve1")[0] == 0
    assert going.on("pve1") == {100, 101}
    code, out, _ = run(going.cluster, "pve1", "cluster", "plan", "--drain", "pve1", "--apply")
    assert code == 0 and going.on("pve1") == set() and out.endswith("2 of 2 moves are made\n")
