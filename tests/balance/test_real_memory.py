"""Whose balloon is moved, and what becomes of it afterwards: real guests with their own balloon driver.

Scaled to what a test may take: 192 MiB that may grow to 768.
"""

import time

import pytest

from pxsched.errors import UserError
from pxsched.knobs.balloon import told
from pxsched.sandbox import linux

pytestmark = [
    pytest.mark.measures,
    pytest.mark.slow,
]

LOW, HIGH = 192, 768


@pytest.fixture(autouse=True)
def kernel():
    try:
        linux.files()
    except UserError as error:
        pytest.skip(f"no kernel for a Linux guest: {error}")


@pytest.fixture
def guests(host):
    host.settings(
        "[node]\nreserved_mib = 64\n"
        "[defaults]\nstarved_mib = 40\nwasteful_mib = 90\nwasteful_percent = 25\nstarved_percent = 5\n"
    )
    vmids = [host.start(100 + n, guest="linux", memory=HIGH, balloon=LOW, shares=0) for n in range(2)]
    for vmid in vmids:
        host.sandbox.guest(vmid).wait(timeout_s=120)
    # Proxmox starts guests at their minimum; the balloon takes a while to get there.
    assert ticking(host, lambda: all(settled(host, vmid) for vmid in vmids), period_s=1.0)
    return vmids


def settled(host, vmid):
    before = balloon_mib(host, vmid)
    time.sleep(1)
    return before < HIGH and balloon_mib(host, vmid) == before


def balloon_mib(host, vmid):
    from pxsched.guest import balloon

    return balloon.read(host.root, vmid, patience_s=5.0).actual_mib


def ticking(host, condition, *, within_s=90.0, period_s=3.0):
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        host.tick(period_s)
    return True


def available_mib(host, vmid):
    return int(host.sandbox.guest(vmid).state()["memavailable_kib"]) / 1024


def test_a_guest_that_is_not_ours_keeps_its_balloon_and_is_named(host, guests):
    _one, other = guests
    host.sandbox.qm("set", other, shares=1000)
    # What it was told while it was ours is handed over first, with room to spare.
    assert ticking(host, lambda: other not in told(host.root) and settled(host, other))
    before = balloon_mib(host, other)
    host.sandbox.guest(other).hold(int(available_mib(host, other)) - 25)
    for _ in range(3):
        host.tick(2.5)
    assert balloon_mib(host, other) == pytest.approx(before, abs=2)
    assert "Proxmox balances" in host.state()["last"]["skipped"][str(other)]


def test_restore_hands_a_guest_over_with_what_it_uses(host, guests):
    from pxsched.node import settle

    one, _ = guests
    before = balloon_mib(host, one)
    host.sandbox.guest(one).hold(int(available_mib(host, one)) - 25)
    assert ticking(host, lambda: balloon_mib(host, one) > before + 40)
    grown = balloon_mib(host, one)
    assert told(host.root)[one][1] > before
    settle.restore_all(host.root)
    assert told(host.root) == {}
    for _ in range(8):
        time.sleep(1)
        assert balloon_mib(host, one) >= grown - 4, "who takes it back is Proxmox, in its own steps"
    assert available_mib(host, one) > 0, "its init answers: nothing was killed for want of memory"
