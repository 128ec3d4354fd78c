"""Which CPUs are to be had at all, and which of equal ones are taken."""

from pxsched.placement import supply
from pxsched.placement.machine import machine_of, mask_of
from pxsched.placement.occupancy import occupancy, offered
from pxsched.placement.request import Host, VmClass
from pxsched.placement.search import place
from pxsched.placement.shared import shared_pool
from pxsched.placement.supply import Stock
from pxsched.settings.policy import Smt
from pxsched.value import replace

from .machines import from_table, held, wish

# Four cores of two siblings (N and N + 4) in two L3 groups; and eight cores without.
CORES = from_table((cpu, cpu % 4, 0, cpu % 4 // 2, 0) for cpu in range(8))
FLAT = from_table((cpu, cpu, 0, cpu // 4, 0) for cpu in range(8))


def test_a_vm_that_wants_siblings_idle_gets_one_cpu_of_each_core_that_nobody_is_on():
    machine = machine_of(CORES)
    everything = mask_of(range(8))
    assert supply.usable_for(machine, everything, 0, Smt.ISOLATE) == mask_of({0, 1, 2, 3})
    assert supply.usable_for(machine, everything, mask_of({5}), Smt.ISOLATE) == mask_of({0, 2, 3})


def test_a_group_that_is_broken_already_is_taken_before_a_whole_one():
    machine = machine_of(FLAT)
    cells = [cell for node in machine.nodes for cell in machine.cells[node]]
    whole, broken = cells
    stocks = [
        Stock(whole, whole.mask, 4, 4, True, 0.0),
        Stock(broken, broken.mask & ~mask_of({4}), 4, 4, False, 0.0),
    ]
    fill = supply.fill(stocks, 2, 0)
    assert fill is not None and (fill.groups, fill.broken) == (frozenset((broken.group,)), 0)


def test_shared_vms_keep_off_pinned_ones_while_the_other_cpus_suffice():
    machine, others = machine_of(FLAT), [held("2-3", vm_class=VmClass.PINNED), held("6", 901)]
    for vcpus, want in ((5, {0, 1, 4, 5, 7}), (6, {0, 1, 2, 3, 4, 5, 7})):
        request = wish(vcpus, vm_class=VmClass.SHARED)
        occupied = occupancy(machine, others, request, Host(FLAT))
        assert shared_pool(machine, occupied, machine.online, vcpus) == mask_of(want)


def test_a_shared_vm_stays_in_its_home_where_another_is_no_better():
    """Of two like L3 groups it is in the one that a newcomer would not get."""
    request = wish(4, vm_class=VmClass.SHARED)
    first = place(Host(FLAT), [], request)
    other = frozenset(range(8)) - first.cpus
    there = replace(first, vcpus=(other,) * 4, emulator=other)
    assert place(Host(FLAT), [], replace(request, previous=there)).cpus == other


def test_only_cpus_that_the_affinity_lists_are_offered():
    machine = machine_of(FLAT)
    request = wish(2, vm_class=VmClass.CONSTRAINED, affinity=(1, 2, 5))
    assert offered(machine, Host(FLAT), request) == mask_of({1, 2, 5})
