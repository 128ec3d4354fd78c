"""A guest that is told of siblings and sockets already is placed so that it is true."""

import random

import pytest

from pxsched.guest import config
from pxsched.node import claims
from pxsched.placement.request import Holding, Host, Refused, VmClass
from pxsched.placement.search import place
from pxsched.settings.policy import Policy, Smt, Wish
from pxsched.shape import options, picture
from pxsched.value import replace

from .conftest import XEON, traits_of
from .machines import machine

TWO_NODES = machine()


def placed(vm: dict[str, str], busy: list[int], smt: Smt = Smt.PREFER) -> picture.Picture | None:
    """How a dedicated VM's vCPUs lie beside others; None where there is no room."""
    described = config.machine(config.Config(options=vm))
    wish = claims.request(100, described, replace(Policy(), wish=Wish.DEDICATED, smt=smt))
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
