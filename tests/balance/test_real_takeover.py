"""A balloon that is taken over, and given back while the guest needs more and more: real Linux guests."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pxsched.errors import UserError
from pxsched.guest import balloon
from pxsched.sandbox import linux

pytestmark = [
    pytest.mark.measures,
    pytest.mark.slow,
]

HALF, ALL = 256, 512
# By policy half of its memory; by its own configuration.
POLICY, OWN = 101, 102


@pytest.fixture(scope="module")
def host(shared_host):
    try:
        linux.files()
    except UserError as error:
        pytest.skip(f"no kernel for a Linux guest: {error}")
    shared_host.settings(
        "[node]\nreserved_mib = 64\n[defaults]\nstarved_mib = 40\nwasteful_mib = 90\nwasteful_percent = 25\n"
        f"[vm.{POLICY}]\nballoon_minimum_percent = 50\n"
    )
    shared_host.held = {POLICY: 0, OWN: 0}
    for vmid, options in ((POLICY, {}), (OWN, {"balloon": HALF})):
        shared_host.sandbox.qm("create", vmid, guest="linux", memory=ALL, **options)
    shared_host.untouched = {vmid: config(shared_host, vmid) for vmid in (POLICY, OWN)}
    shared_host.pxsched("enable", str(POLICY), "--balloon")
    for vmid in (POLICY, OWN):
        shared_host.sandbox.qm("start", vmid)
    for vmid in (POLICY, OWN):
        shared_host.sandbox.guest(vmid).wait(timeout_s=120)
    return shared_host


def config(host, vmid):
    return host.sandbox.node.config(vmid).read_text()


def size(host, vmid):
    return round(balloon.read(host.root, vmid, patience_s=5.0).actual_mib)


def until(condition, *, within_s=60.0):
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(1)
    return condition()


def fill(host, vmid, *, more_mib=0):
    """All that the guest has but 20 MiB, and then more, a little at a time; what it holds in the end."""
    guest = host.sandbox.guest(vmid)
    host.held[vmid] += (int(guest.state()["memavailable_kib"]) >> 10) - 20
    guest.hold(host.held[vmid])
    for _ in range(more_mib // 4):
        host.held[vmid] += 4
        guest.hold(host.held[vmid])
        time.sleep(0.4)
    return host.held[vmid]


def given_back_under_load(host, vmid):
    """Disabled while it needs more and more; what the guest holds after that."""
    fill(host, vmid)
    with ThreadPoolExecutor() as pool:
        load = pool.submit(fill, host, vmid, more_mib=60)
        host.pxsched("disable", str(vmid), "--now")
        held_mib = load.result()
    assert config(host, vmid) == host.untouched[vmid]
    said = host.sandbox.node.own(vmid, "console").read_text("utf-8", "replace")
    assert "Out of memory" not in said
    assert "invoked oom-killer" not in said
    return held_mib


def test_a_minimum_by_policy_is_proxmoxs_own_and_gone_when_disabled(host):
    assert "balloon: 256" in config(host, POLICY)
    assert until(lambda: size(host, POLICY) == HALF)
    fill(host, POLICY)
    host.tick()
    host.tick(3)
    assert until(lambda: size(host, POLICY) > HALF + 40)
    given_back_under_load(host, POLICY)
    assert until(lambda: size(host, POLICY) == ALL)


def test_a_balloon_that_was_taken_over_is_given_back_under_load_and_nobody_is_killed(host):
    assert until(lambda: size(host, OWN) == HALF)
    host.pxsched("enable", str(OWN), "--balloon", "--now")
    assert "shares: 0" in config(host, OWN)
    fill(host, OWN)
    host.tick(3)
    assert until(lambda: size(host, OWN) > HALF + 20)
    held_mib = given_back_under_load(host, OWN)
    assert until(lambda: size(host, OWN) > held_mib + 40), "Proxmox takes it back in its own steps"
