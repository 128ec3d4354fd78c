"""Killed at any write, over all plugins together: what is left is undone, or finished, by the next run.

A child process does the work and is killed with SIGKILL at its N-th write, for every N there is.
"""

import os
import signal
import sys
from dataclasses import replace

import pytest

from pxsched import ledger as ledgers
from pxsched.guest.config import Machine
from pxsched.host import frequency
from pxsched.placement.request import VmClass
from pxsched.plugins import governor, registry
from pxsched.plugins.view import VmView
from pxsched.policy import Isolation, MemoryMode, NodeSettings
from pxsched.reconcile import reconcile

MOST_WRITES = 400
SLICES = NodeSettings(isolation=Isolation.SLICES)
WRITES = (
    "systemd.call", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod",
)  # fmt: skip


@pytest.fixture
def machine(tree, fake_systemd):
    """Two VMs run: one wants everything, one a little of it, on a frequency policy they share."""
    tree.put("run/pxsched/.keep", "")
    tree.put("proc/sys/kernel/random/boot_id", "this-boot")
    tree.scope(100)
    tree.scope(101)
    return tree


def claims_of(views):
    strict = views.claim(
        100, "2-4", governor="performance", energy="performance", memory=MemoryMode.STRICT, halt_poll_ns=1000,
        resume_latency_us=0,
    )  # fmt: skip
    modest = views.claim(101, "5-6", VmClass.PINNED, nodes="1", governor="powersave", resume_latency_us=30)
    return strict, modest


def desired(tree, views, *claims):
    host = views.host(*claims, settings=SLICES)
    host = replace(host, frequency=frequency.read(tree.root, governor.cpus(host.claims)))
    settings = list(registry.of_node(host))
    for claim in claims:
        # Memory that lies on the wrong node, so that the second VM's is moved.
        by_node = {0: 1 << 30, 1: 1 << 30} if claim.vmid == 101 else None
        settings += registry.of_vm(VmView(claim, Machine(), memory_bytes=by_node), host)
    return settings


def run(tree, settings) -> None:
    with ledgers.locked(tree.root) as ledger:
        reconcile(tree.root, ledger, settings, None)


def killed_at(number: int, work, fake_systemd) -> bool:
    """Does the work in a child; says whether the kill came before its end."""
    child = os.fork()
    if child == 0:
        left = number

        def audited(event: str, arguments: tuple) -> None:
            nonlocal left
            flags = arguments[2] if event == "open" else 0
            if fake_systemd.works:
                return
            if event in WRITES or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(audited)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the work failed by itself: {status}"
    return status != 0


@pytest.fixture
def every_write(fake_systemd):
    def kill(work, then) -> None:
        for number in range(MOST_WRITES):
            was_killed = killed_at(number, work, fake_systemd)
            then(number)
            if not was_killed:
                break
        assert 20 < number < MOST_WRITES - 1, "every write was tried, and there were many"

    return kill


def test_every_plugin_has_a_part_in_this(machine, views):
    claims = claims_of(views)
    kinds = {setting.knob.kind for setting in desired(machine, views, *claims)}
    assert kinds == {
        "governor", "energy", "slice", "cgroup", "dropin", "memory-nodes", "kvm", "resume-latency",
    }  # fmt: skip


def test_turning_killed_at_any_write_can_be_undone(machine, views, every_write):
    before, settings = machine.content(), desired(machine, views, *claims_of(views))

    def undone(number: int) -> None:
        run(machine, [])
        assert machine.content() == before, f"killed at write {number}"
        assert not ledgers.peek(machine.root).journal

    every_write(lambda: run(machine, settings), undone)


def test_turning_killed_at_any_write_is_finished_by_the_next_pass(machine, views, every_write):
    before, settings = machine.content(), desired(machine, views, *claims_of(views))
    run(machine, settings)
    wanted = machine.content()
    run(machine, [])

    def finished(number: int) -> None:
        run(machine, settings)
        assert machine.content() == wanted, f"killed at write {number}"
        run(machine, [])
        assert machine.content() == before, f"killed at write {number}"

    every_write(lambda: run(machine, settings), finished)


def test_undoing_killed_at_any_write_is_finished_by_the_next(machine, views, every_write):
    before, settings = machine.content(), desired(machine, views, *claims_of(views))
    run(machine, settings)

    def undone(number: int) -> None:
        run(machine, [])
        assert machine.content() == before, f"killed at write {number}"
        run(machine, settings)

    every_write(lambda: run(machine, []), undone)


def test_one_vm_leaving_killed_at_any_write_ends_as_if_it_had_not_been_killed(machine, views, every_write):
    strict, modest = claims_of(views)
    both, one = desired(machine, views, strict, modest), desired(machine, views, modest)
    before = machine.content()
    run(machine, both)
    run(machine, one)
    wanted = machine.content()
    run(machine, both)

    def left(number: int) -> None:
        run(machine, one)
        assert machine.content() == wanted, f"killed at write {number}"
        run(machine, both)

    every_write(lambda: run(machine, one), left)
    run(machine, [])
    assert machine.content() == before
