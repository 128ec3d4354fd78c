"""A plan of moves can be carried out step by step, ends what it says, and leaves nothing to plan."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.cluster import planner
from pxsched.cluster.hindrances import Verdict
from pxsched.cluster.paper import Paper, Tenant, least, owns
from pxsched.cluster.planner import Plan
from pxsched.cluster.publication import Stranger
from pxsched.cluster.wrongs import COOLDOWN_S, Guest, Reason, crowded, wrongs
from pxsched.placement import defrag
from pxsched.placement.request import Holding, Refused, Request, VmClass
from pxsched.settings.policy import Smt
from pxsched.value import replace
from tests.placement.machines import host, machine

MACHINES = (machine(1, 2, 4, 2), machine(2, 2, 4, 2), machine(2, 1, 4, 1), machine(1, 1, 8, 2))


class Known:
    """What is known of moves: a request for each VM, the same everywhere, and what speaks against some.

    devices: how many of a kind each node has; users: the VMs that have one of them as a whole.
    """

    def __init__(self, requests: Mapping[int, Request], against: Mapping[tuple[int, str], str] | None = None):
        self.requests, self._against = requests, against or {}
        self.copies: dict[int, int] = {}
        self.devices: dict[str, int] = {}
        self.users: set[int] = set()

    def free(self, name: str, places: Mapping[int, str]) -> int:
        return self.devices.get(name, 0) - sum(places.get(vmid) == name for vmid in self.users)

    def request(self, vmid: int, target: str) -> Request:
        return self.requests[vmid]

    def verdict(self, vmid: int, target: str, places: Mapping[int, str]) -> Verdict:
        said = self._against.get((vmid, target), "")
        if vmid in self.users and self.free(target, places) < 1:
            said = "no device is free"
        return Verdict((said,) if said else (), copy_mib=self.copies.get(vmid, 0))


def sheet(name: str, topology, free_mib: int = 1 << 20, huge_mib: int = 0, **more) -> Paper:
    nodes = [node.id for node in topology.nodes]
    free = dict.fromkeys(nodes, free_mib)
    huge = {(node, size): free_mib + huge_mib for node in nodes for size in (2, 0)}
    return Paper(name, host(topology, free_mib=free, free_hugepages_mib=huge), {}, {}, **more)


def put(found: Paper, request: Request, cpus=None) -> Paper:
    """The VM on this node, where placement has it, or on these CPUs."""
    place = found.place(request)
    if cpus is not None:
        place = replace(place, vcpus=tuple(frozenset((cpu,)) for cpu in cpus))
    return found.having(request, place)


def dedicated(vmid: int, vcpus: int, **more) -> Request:
    return Request(vmid, vcpus, more.pop("memory_mib", 1024), VmClass.DEDICATED, cores=vcpus, **more)


def shared(vmid: int, vcpus: int, load: float | None = None, **more) -> Request:
    return Request(vmid, vcpus, more.pop("memory_mib", 1024), VmClass.SHARED, cores=vcpus, load=load, **more)


def planned(sheets: list[Paper], requests: list[Request], **how) -> Plan:
    known = Known({one.vmid: one for one in requests}, how.pop("against", None))
    known.copies = how.pop("copies", {})
    rested = how.pop("rested", {})
    guests = [Guest(one.vmid, True, rested.get(one.vmid)) for one in requests]
    return planner.plan({one.name: one for one in sheets}, guests, known, **how)


def moves(found: Plan) -> list[tuple[int, str]]:
    return [(move.vmid, move.target) for move in found.moves]


def test_a_vm_that_crosses_without_need_goes_where_it_does_not():
    """A VM on both L3 groups of one node; the other node is empty."""
    one = put(sheet("a", MACHINES[0]), dedicated(100, 4), cpus=(1, 9, 4, 12))
    found = planned([one, sheet("b", MACHINES[0])], [dedicated(100, 4)])
    assert moves(found) == [(100, "b")]
    assert found.moves[0].why == "it spans 1 node and 2 L3 groups on a, where 1 node and 1 L3 group could do"


def test_a_move_that_ends_nothing_is_none():
    """The other node's L3 groups are smaller: there it would cross, too."""
    one = put(sheet("a", MACHINES[1]), dedicated(100, 8), cpus=(1, 17, 2, 18, 4, 20, 5, 21))
    found = planned([one, sheet("b", MACHINES[2])], [dedicated(100, 8)])
    assert found.moves == () and "b: " in found.stays[0].why and found.stays[0].vmid == 100


def test_the_cheapest_move_comes_first_and_local_disks_count():
    requests = [dedicated(100, 4, memory_mib=8192), dedicated(101, 4, memory_mib=2048), dedicated(102, 4)]
    sheets = [sheet("z", MACHINES[3])]
    for number, request in enumerate(requests):
        sheets.append(put(sheet(f"n{number}", MACHINES[0]), request, cpus=(1, 9, 4, 12)))
    found = planned(sheets, requests, copies={102: 10_000})
    assert [move.vmid for move in found.moves][:3] == [101, 100, 102]
    assert [move.cost_mib for move in found.moves] == [2048, 8192, 11_024]


def crowd(name: str, *loads: float) -> tuple[Paper, list[Request]]:
    """Shared VMs of four vCPUs, confined to four CPUs of a node."""
    number = 100 * (1 + ord(name[-1]) - ord("a"))
    found, requests = sheet(name, MACHINES[0]), []
    for offset, load in enumerate(loads):
        request = shared(number + offset, 4, load, cpus=frozenset(range(4)))
        found = put(found, request)
        requests.append(replace(request, cpus=None))
    return found, requests


def test_contention_is_ended_where_there_is_room():
    one, requests = crowd("a", 3.0, 3.0)
    found = planned([one, sheet("b", MACHINES[0])], requests)
    assert moves(found) == [(100, "b")] and found.moves[0].reason is Reason.CONTENTION
    assert "1.50 are wanted for each of its CPUs on a" in found.moves[0].why


def test_nobody_is_brought_into_contention():
    one, requests = crowd("a", 3.0, 3.0)
    two, more = crowd("b", *[2.0] * 8)
    found = planned([one, replace(two, host=replace(two.host, busy=dict.fromkeys(range(16), 0.9)))],
                    [*requests, *more])  # fmt: skip
    assert not [move for move in found.moves if move.target == "b"]


def test_a_vm_that_wants_much_by_itself_is_not_in_contention():
    one, requests = crowd("a", 4.6)
    assert planned([one, sheet("b", MACHINES[0])], requests).stays == ()


def test_a_vm_without_a_place_gets_one_elsewhere():
    full = put(sheet("a", MACHINES[2]), dedicated(101, 7))
    full = replace(full, strangers={100: Stranger(100, False, frozenset(range(8)), None)})
    found = planned([full, sheet("b", MACHINES[0])], [dedicated(100, 4), dedicated(101, 7)])
    assert moves(found) == [(100, "b")] and found.moves[0].reason is Reason.UNPLACED


def full(name: str, vmid: int) -> tuple[Paper, Request]:
    """A node all of whose CPUs one VM owns, so that VM 100 has no place there."""
    request = dedicated(vmid, 7)
    found = put(sheet(name, MACHINES[2]), request)
    return replace(found, strangers={100: Stranger(100, False, frozenset(range(8)), None)}), request


def test_who_has_no_place_comes_first_and_rather_crosses_than_has_none():
    """Whatever it costs, and though the one place for it is on both L3 groups of b."""
    one, owner = full("a", 109)
    two = sheet("b", MACHINES[0])
    for vmid, cpus in ((101, (1, 9, 2, 10)), (102, (4, 12, 5, 13))):
        two = put(two, dedicated(vmid, 4), cpus=cpus)
    three = put(sheet("c", MACHINES[0]), dedicated(103, 4), cpus=(1, 9, 4, 12))
    requests = [dedicated(100, 6, memory_mib=8192), owner, *(dedicated(vmid, 4) for vmid in (101, 102, 103))]
    against = {(100, "c"): "no", (100, "d"): "no"}
    found = planned([one, two, three, sheet("d", MACHINES[0])], requests, against=against)
    assert moves(found) == [(100, "b"), (103, "d")] and found.moves[0].cost_mib == 8192
    assert defrag.span_of(found.after["b"].machine, found.after["b"].tenants[100].held).groups == 2


def test_who_has_no_place_gets_one_where_nobody_is_crowded_if_there_is_such():
    """Four nodes where it would crowd others are emptier, and come first."""
    one, owner = full("a", 109)
    sheets, requests, against = [one], [dedicated(100, 6), owner], {}
    for number, name in enumerate("bdef", 2):
        others = [shared(100 * number + offset, 4, 2.0) for offset in range(3)]
        two = sheet(name, MACHINES[0])
        for request in others:
            two = put(two, request)
            against |= {(request.vmid, target): "no" for target in "abcdef"}
        sheets.append(replace(two, host=replace(two.host, busy=dict.fromkeys(range(16), 0.5))))
        requests += others
    found = planned(sheets, requests, against=against)
    assert moves(found) == [(100, "b")] and crowded(found.after["b"])
    three = put(sheet("c", MACHINES[0]), dedicated(108, 8))
    three = replace(three, host=replace(three.host, busy=dict.fromkeys(range(16), 0.9)))
    found = planned([*sheets, three], [*requests, dedicated(108, 8)], against=against)
    assert moves(found) == [(100, "c")]


def test_a_vm_rests_for_an_hour_after_it_came():
    one = put(sheet("a", MACHINES[0]), dedicated(100, 4), cpus=(1, 9, 4, 12))
    sheets = [one, sheet("b", MACHINES[0])]
    found = planned(sheets, [dedicated(100, 4)], rested={100: COOLDOWN_S - 1})
    assert found.moves == () and "less than an hour ago" in found.stays[0].why
    assert planned(sheets, [dedicated(100, 4)], rested={100: COOLDOWN_S}).moves
    assert planned(sheets, [dedicated(100, 4)], rested={100: 1.0}, drain="a").moves, "but not from a drain"


def test_a_drained_node_is_empty_and_takes_nobody():
    one = put(put(sheet("a", MACHINES[1]), dedicated(100, 4)), shared(101, 2))
    one = replace(one, strangers={102: Stranger(102, False, frozenset(range(32)), 0.5)})
    requests = [dedicated(100, 4), shared(101, 2), shared(102, 2)]
    found = planned([one, sheet("b", MACHINES[0]), sheet("c", MACHINES[0])], requests, drain="a",
                    closed=frozenset("c"))  # fmt: skip
    assert sorted(moves(found)) == [(100, "b"), (101, "b"), (102, "b")] and not found.stays
    assert not found.after["a"].tenants and not found.after["a"].strangers


def test_who_cannot_leave_a_drained_node_is_named_with_every_reason():
    one = put(sheet("a", MACHINES[1]), dedicated(100, 12))
    found = planned([one, sheet("b", MACHINES[2]), sheet("c", MACHINES[1])], [dedicated(100, 12)], drain="a",
                    against={(100, "c"): "it is locked (backup)"})  # fmt: skip
    assert found.moves == ()
    assert "b: needs 12 exclusive CPUs" in found.stays[0].why and "c: it is locked" in found.stays[0].why


def test_pins_are_never_shared_with_somebody_elses():
    """`affinity` means other CPUs there, and they are another VM's own."""
    pinned = Request(100, 2, 1024, VmClass.PINNED, affinity=(1, 9), cores=2)
    two = put(sheet("b", MACHINES[0]), dedicated(101, 2))
    assert two.tenants[101].held.cpus == {1, 9} or two.tenants[101].held.cpus & {0, 8, 1, 9}
    pins = tuple(sorted(two.tenants[101].held.cpus))
    pinned = replace(pinned, affinity=pins)
    one = put(sheet("a", MACHINES[0]), pinned)
    found = planned([one, two], [pinned, dedicated(101, 2)], drain="a")
    assert found.moves == () and "it and VM 101 would have CPUs in common there" in found.stays[0].why


def test_demand_is_evened_out_only_when_asked_and_only_where_it_matters():
    one, requests = crowd("a", 2.5, 2.5, 2.5, 2.5)
    one = replace(one, tenants={key: tenant._replace(held=tenant.held._replace(
        vcpus=(frozenset(range(16)),) * 4)) for key, tenant in one.tenants.items()})  # fmt: skip
    sheets = [one, sheet("b", MACHINES[0])]
    assert planned(sheets, requests).moves == ()
    found = planned(sheets, requests, even=True)
    assert moves(found) == [(100, "b"), (101, "b")] and found.moves[0].reason is Reason.EVEN
    assert planned([*found.after.values()], requests, even=True).moves == ()


def test_what_a_mended_crossing_makes_uneven_is_evened_out_too():
    """b is too full for VM 100, which crosses on a. When c has taken a VM from b, 100 comes there; then b is
    the fullest again, and a, which 100 has left, takes two more.
    """
    one = put(sheet("a", MACHINES[0]), dedicated(100, 8), cpus=(1, 9, 2, 10, 4, 12, 5, 13))
    two, others = sheet("b", MACHINES[0]), [shared(vmid, 4, 3.0) for vmid in (200, 201, 202)]
    for request in others:
        two = put(two, request)
    three, more = crowd("c", 0.5)
    requests = [dedicated(100, 8), *others, *more]
    found = planned([one, two, three], requests, even=True, against={(100, "c"): "no"})
    assert [(move.target, move.reason) for move in found.moves] == [
        ("c", Reason.EVEN), ("b", Reason.CROSSING), ("a", Reason.EVEN), ("a", Reason.EVEN),
    ]  # fmt: skip


def test_a_bound_is_kept_and_said():
    requests = [dedicated(vmid, 4) for vmid in range(100, 104)]
    sheets = [sheet("z", machine(2, 4, 4, 2))]
    for number, request in enumerate(requests):
        sheets.append(put(sheet(f"n{number}", MACHINES[0]), request, cpus=(1, 9, 4, 12)))
    found = planned(sheets, requests, most=2)
    assert len(found.moves) == 2 and found.more


# Properties, over clusters that were filled at random.


@st.composite
def clusters(draw):
    """Nodes with VMs where placement put them, of which some have gone since."""
    sheets, requests = {}, {}
    vmid = 100
    for number in range(draw(st.integers(2, 4))):
        topology = draw(st.sampled_from(MACHINES))
        name = f"n{number}"
        found = sheet(name, topology, draw(st.sampled_from((4096, 16384, 1 << 20))), huge_mib=2048)
        for _ in range(draw(st.integers(0, 7))):
            vmid += 1
            request = draw(wishes(vmid))
            try:
                found = put(found, request)
            except Refused:
                if request.vm_class is VmClass.DEDICATED and draw(st.booleans()):
                    stranger = Stranger(vmid, False, topology.online, request.load)
                    found = replace(found, strangers={**found.strangers, vmid: stranger})
                    requests[vmid] = request
                continue
            requests[vmid] = request
        for gone in draw(st.lists(st.sampled_from(sorted(found.tenants) or [0]), max_size=3, unique=True)):
            if gone in found.tenants:
                found = found.without(gone)
                del requests[gone]
        sheets[name] = found
    against = {
        (vmid, name): "no"
        for vmid in requests
        for name in sheets
        if draw(st.integers(0, 9)) == 0
    }
    guests = [
        Guest(vmid, True, draw(st.sampled_from((None, 10.0, COOLDOWN_S)))) for vmid in sorted(requests)
    ]
    known = Known(requests, against)
    known.users = {vmid for vmid in requests if draw(st.integers(0, 3)) == 0}
    for name, found in sheets.items():
        there = known.users & {*found.tenants, *found.strangers}
        known.devices[name] = len(there) + draw(st.integers(0, 1))
    return sheets, guests, known


@st.composite
def wishes(draw, vmid):
    vcpus = draw(st.integers(1, 8))
    memory_mib = draw(st.sampled_from((512, 2048, 8192)))
    load = draw(st.one_of(st.none(), st.floats(0, 8).map(lambda value: round(value, 2))))
    kind = draw(st.integers(0, 5))
    huge = 2 if draw(st.integers(0, 4)) == 0 else None
    if kind == 0:
        pins = tuple(draw(st.permutations(range(8)))[:vcpus])
        return Request(vmid, vcpus, memory_mib, VmClass.PINNED, affinity=pins, cores=vcpus, load=load)
    if kind == 1:
        return Request(vmid, vcpus, memory_mib, VmClass.CONSTRAINED, affinity=(2, 3), cores=vcpus, load=load)
    if kind < 4:
        smt = draw(st.sampled_from(Smt))
        return dedicated(vmid, vcpus, memory_mib=memory_mib, smt=smt, hugepage_mib=huge, load=load)
    return shared(vmid, vcpus, load, memory_mib=memory_mib, hugepage_mib=huge)


def exclusive(found: Paper) -> set[frozenset[int]]:
    """Pairs of VMs of which one has CPUs of its own that the other may use; shared VMs make room."""
    held = [tenant.held for tenant in found.tenants.values()]
    return {
        frozenset((one.vmid, other.vmid))
        for one in held
        for other in held
        if one.vmid != other.vmid and owns(one) and other.vm_class is not VmClass.SHARED
        and one.cpus & other.cpus
    }  # fmt: skip


def follow(sheets, known: Known, found: Plan, *, drain: str = "") -> dict[str, Paper]:
    """Makes the moves one by one, and checks each by itself."""
    now = dict(sheets)
    places = {vmid: name for name, one in sheets.items() for vmid in (*one.tenants, *one.strangers)}
    for move in found.moves:
        request, target, source = known.requests[move.vmid], now[move.target], now[move.source]
        assert move.vmid in source.tenants or move.vmid in source.strangers
        assert move.target not in (drain, move.source)
        assert not known.verdict(move.vmid, move.target, places).against
        places[move.vmid] = move.target
        assert all(known.free(name, places) >= 0 for name in sheets)
        load = source.tenants[move.vmid].held.load if move.vmid in source.tenants else request.load
        request = replace(request, load=load)
        key = (2, request.hugepage_mib) if request.hugepage_mib else None
        free = [
            target.host.free_hugepages_mib[node, 2] if key else target.host.free_mib[node]
            for node in move.to.nodes
        ]
        assert sum(free) >= request.memory_mib or not owns(move.to) or request.vm_class is VmClass.PINNED
        if request.affinity:
            assert move.to.cpus <= frozenset(request.affinity)
        before = exclusive(target)
        now[move.target] = after = target.having(request, move.to)
        now[move.source] = source.without(move.vmid)
        assert exclusive(after) <= before
        assert all(amount >= 0 for amount in after.host.free_mib.values())
    return now


@given(found=clusters(), even=st.booleans())
def test_plans_are_executable_end_what_they_say_and_leave_nothing(found, even, effort):
    sheets, guests, known = found
    by_vmid = {guest.vmid: guest for guest in guests}
    plan = planner.plan(sheets, guests, known, even=even, most=100)
    after = follow(sheets, known, plan)
    assert after == dict(plan.after) and planner.executable(sheets, plan.moves, known) == ""
    for move in plan.moves:
        assert by_vmid[move.vmid].rested
    assert len({move.vmid for move in plan.moves}) == len(plan.moves), "nobody is moved twice, or back"

    def wrong(state):
        return wrongs(state, by_vmid, lambda name: crowded(state[name]))

    before, left = wrong(sheets), wrong(after)
    without = {vmid for vmid, one in left.items() if one.reason is Reason.UNPLACED}
    assert without <= {vmid for vmid, one in before.items() if one.reason is Reason.UNPLACED}
    mended = {move.vmid: move.reason for move in plan.moves if move.reason is not Reason.EVEN}
    if Reason.UNPLACED not in mended.values():  # who has no place may bring others into contention
        assert left.keys() <= before.keys() - mended.keys()
    just = {move.vmid for move in plan.moves}
    later = [replace(guest, rested_s=0.0) if guest.vmid in just else guest for guest in guests]
    assert planner.plan(after, later, known, even=even, most=100).moves == ()


@given(found=clusters())
def test_a_drain_is_executable_and_names_whoever_stays(found, effort):
    sheets, guests, known = found
    plan = planner.plan(sheets, guests, known, drain="n0")
    after = follow(sheets, known, plan, drain="n0")
    assert {move.source for move in plan.moves} <= {"n0"}
    left = {*after["n0"].tenants, *after["n0"].strangers}
    assert left == {stay.vmid for stay in plan.stays}
    assert planner.plan(after, guests, known, drain="n0").moves == ()


MOST_EXAMPLES = 400


@pytest.mark.parametrize("size", [None, 2])
def test_memory_that_comes_and_goes_is_counted_once(size):
    """A VM that comes takes what it needs, and gives it back when it leaves."""
    empty = sheet("a", MACHINES[0], 8192, huge_mib=1024)
    request = dedicated(100, 2, memory_mib=2048, hugepage_mib=size)
    full = put(empty, request)
    taken = full.host.free_mib[0], full.host.free_hugepages_mib[0, 2]
    assert taken == ((6144, 7168) if size is None else (7168, 7168))
    back = full.without(100).host
    assert back.free_hugepages_mib[0, 2] == 9216 and back.free_mib[0] == (8192 if size is None else 7168)


def test_of_a_vm_that_runs_only_what_the_kernel_counted_becomes_free():
    held = Holding(100, VmClass.SHARED, (frozenset((1,)),))
    full = replace(sheet("a", MACHINES[0], 1000), tenants={100: Tenant(held, frozenset((0,)), {0: 300})})
    assert full.without(100).host.free_mib == {0: 1300}


def test_shared_vms_leave_cpus_that_come_to_belong_to_somebody():
    one = put(sheet("a", MACHINES[0]), shared(101, 4, 1.0))
    home = one.tenants[101].held.cpus
    after = put(one, dedicated(100, 4), cpus=sorted(home)[:4])
    assert not after.tenants[101].held.cpus & after.tenants[100].held.cpus
    assert defrag.span_of(after.machine, after.tenants[101].held).rank >= least(after, 4).rank


def test_a_pinned_vm_may_come_to_where_shared_vms_float():
    pinned = Request(100, 1, 1024, VmClass.PINNED, affinity=(1,), cores=1)
    found = planned([put(sheet("a", MACHINES[0]), pinned), put(sheet("b", MACHINES[0]), shared(101, 16))],
                    [pinned, shared(101, 16)], drain="a")  # fmt: skip
    assert moves(found) == [(100, "b")]
