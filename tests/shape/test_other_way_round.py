"""A guest that is told of siblings and sockets already is placed so that it is true."""

import random

import pytest

from pxsched.guest import config
from pxsched.node import wishes
from pxsched.placement.request import Holding, Host, Placement, Refused, VmClass
from pxsched.placement.search import place
from pxsched.settings.policy import Policy, Smt, Wish
from pxsched.shape import options, picture
from pxsched.value import replace

from .conftest import XEON, traits_of
from .machines import machine

TWO_NODES = machine()


def answered(vm: dict[str, str]) -> Placement:
    """Where a VM goes whose policy says nothing, on an empty node."""
    described = config.machine(config.Config(options=vm))
    return place(Host(TWO_NODES), (), wishes.request(100, described, Policy()))


def placed(vm: dict[str, str], busy: list[int], smt: Smt = Smt.PREFER) -> picture.Picture | None:
    """How a dedicated VM's vCPUs lie beside others; None where there is no room."""
    described = config.machine(config.Config(options=vm))
    wish = wishes.request(100, described, replace(Policy(), wish=Wish.DEDICATED, smt=smt))
    others = [Holding(200, VmClass.PINNED, tuple(frozenset((cpu,)) for cpu in busy))] if busy else []
    try:
        found = place(Host(TWO_NODES), others, wish)
    except Refused:
        return None
    return picture.truth(picture.seats(TWO_NODES, [min(cpus) for cpus in found.vcpus]))


def told(vm: dict[str, str]) -> picture.Picture:
    seen = options.read(vm)
    return picture.seen(seen.smp, seen.node_of, traits_of(seen, XEON))


@pytest.mark.parametrize("smt", [Smt.PREFER, Smt.REQUIRE, Smt.SHARE])
def test_siblings_that_a_guest_believes_in_are_siblings_whatever_else_is_taken(smt):
    chance = random.Random(3)
    seen = 0
    for _ in range(60):
        busy = chance.sample(range(32), chance.randint(0, 20))
        vcpus = chance.choice((2, 4, 6, 8))
        vm = {"cores": str(vcpus), "cpu": "Skylake-Server", "args": f"-smp cores={vcpus // 2},threads=2"}
        real = placed(vm, busy, smt)
        if real is not None:
            seen += 1
            assert real.cores == told(vm).cores
    assert seen > 20


def test_sockets_lie_on_nodes_in_order_with_their_siblings():
    vm = {"sockets": "2", "cores": "12", "cpu": "Skylake-Server", "numa": "1",
          "args": "-smp sockets=2,cores=6,threads=2"}  # fmt: skip
    real = placed(vm, [])
    assert real is not None
    assert (real.cores, real.nodes) == (told(vm).cores, told(vm).nodes)


def test_guest_nodes_lie_on_nodes_in_order_with_their_siblings():
    vm = {"cores": "24", "cpu": "Skylake-Server", "memory": "512", "numa": "1",
          "numa0": "cpus=0-11,memory=256", "numa1": "cpus=12-23,memory=256",
          "args": "-smp sockets=1,cores=12,threads=2"}  # fmt: skip
    real = placed(vm, [])
    assert real is not None
    assert (real.cores, real.nodes) == (told(vm).cores, told(vm).nodes)


def test_each_socket_lies_whole_on_a_node_whatever_else_is_taken_where_nodes_have_room_for_it():
    chance = random.Random(4)
    vm = {"sockets": "4", "cores": "6", "cpu": "Skylake-Server", "numa": "1",
          "args": "-smp sockets=4,cores=3,threads=2"}  # fmt: skip
    spans = 0
    for _ in range(40):
        # Whole cores, so that there is room for three of six on one node and one on the other.
        busy = [cpu for core in chance.sample(range(1, 8), chance.randint(0, 2)) for cpu in (core, core + 16)]
        real = placed(vm, busy)
        if real is None:
            continue
        spans += len(set(real.nodes)) > 1
        assert real.cores == told(vm).cores
        sockets = [{real.nodes[vcpu] for vcpu in range(first, first + 6)} for first in range(0, 24, 6)]
        assert all(len(nodes) == 1 for nodes in sockets)
        assert sockets == sorted(sockets, key=min), "sockets of one node are neighbours"
    assert spans > 10


FOUR_GUEST_NODES = {
    f"numa{number}": f"cpus={5 * number}-{5 * number + 4},memory=512" for number in range(4)
}


@pytest.mark.parametrize(
    "vm",
    [
        {"sockets": "2", "cores": "10"},
        {"sockets": "2", "cores": "10", "numa": "1"},
        {"sockets": "4", "cores": "5"},
        {"cores": "20", "memory": "2048", "numa": "1", **FOUR_GUEST_NODES},
        {"cores": "20", "args": "-smp sockets=2,cores=5,threads=2"},
        {"sockets": "2", "cores": "10", "affinity": "4-15,18-31"},
    ],
)
def test_sockets_and_guest_nodes_of_a_vm_that_floats_over_both_nodes_stay_on_one_each_in_order(vm):
    answer = answered(vm)
    assert [sorted(TWO_NODES.nodes_of(cpus)) for cpus in answer.vcpus] == [[0]] * 10 + [[1]] * 10
    assert {len(set(answer.vcpus[first : first + 10])) for first in (0, 10)} == {1}, "they float there"
    said = "stay apart, in order: vCPUs 0-9 on node 0, vCPUs 10-19 on node 1"
    assert any(said in line for line in answer.why)


@pytest.mark.parametrize(
    "vm",
    [
        {"cores": "20"},
        {"sockets": "3", "cores": "7"},  # three on two nodes cannot come out even
        {"sockets": "2", "cores": "10", "affinity": "0-7,16-23,30,31"},  # no room for ten on node 1
    ],
)
def test_where_that_cannot_be_all_of_them_float_on_all_of_it(vm):
    answer = answered(vm)
    assert len(set(answer.vcpus)) == 1
    assert TWO_NODES.nodes_of(answer.cpus) == {0, 1}
    assert not any("stay apart" in line for line in answer.why)


def test_a_floating_vm_that_one_node_holds_has_all_its_sockets_there():
    answer = answered({"sockets": "2", "cores": "4", "numa": "1"})
    assert len(TWO_NODES.nodes_of(answer.cpus)) == len(set(answer.vcpus)) == 1
