"""Four real guests and one host's memory: Linux with its own balloon driver, loads set while they run.

A quarter of four guests of 512 MiB that grow to 2 GiB. What is asserted is what QEMU says of a balloon and
what the guest's own /proc/meminfo says. Where the host has a limit, that less what the guests hold is said to
be all it has: what other work this machine does at the moment must not decide about these tests.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.guest import balloon, schedstat
from pxsched.root import Root
from pxsched.sandbox import linux

from .conftest import ALONE

pytestmark = [
    pytest.mark.measures,
    pytest.mark.slow,
]

LOW, HIGH = 128, 512
BOUNDS = "[defaults]\nstarved_mib = 40\nwasteful_mib = 90\nwasteful_percent = 25\nstarved_percent = 5\n"
RESERVED_MIB = 64
LIMITED = (
    "from pxsched.host import pressure;"
    "pressure.host_memory = lambda root: pressure.HostMemory(8192.0, {available_mib});"
)
# A guest's load goes this near to what it has, so that it starves and is not killed.
MARGIN_MIB = 22


@dataclass
class Guests:
    """The guests of one host. limit_mib: what they may have together, None for all the machine has."""

    host: object
    vmids: list[int]
    limit_mib: int | None = None
    held: dict[int, int] = field(default_factory=dict)

    def reading(self, vmid):
        found = balloon.read(self.host.root, vmid, patience_s=5.0)
        assert isinstance(found, balloon.Reading), found
        return found

    def size(self, vmid):
        return self.reading(vmid).actual_mib

    def sizes(self):
        return [self.size(vmid) for vmid in self.vmids]

    def available(self, vmid):
        return int(self.host.sandbox.guest(vmid).state()["memavailable_kib"]) / 1024

    def hold(self, vmid, mib):
        self.held[vmid] = mib
        self.host.sandbox.guest(vmid).hold(mib)

    def grow(self, vmid, wanted_mib):
        """As much of it as the guest can hold now; more as its balloon gives way."""
        room = int(self.available(vmid)) - MARGIN_MIB
        if room > 0:
            self.hold(vmid, min(wanted_mib, self.held.get(vmid, 0) + room))

    def tick(self, after_s=2.5):
        time.sleep(after_s)
        self.host.program = ALONE
        if self.limit_mib is not None:
            available_mib = self.limit_mib - sum(map(self.occupied, self.vmids)) + RESERVED_MIB
            self.host.program = LIMITED.format(available_mib=available_mib) + ALONE
        return self.host.tick()

    def occupied(self, vmid):
        """The host's memory that it holds."""
        return min(schedstat.resident_mib(Root("/"), self.host.sandbox.pid(vmid)), self.size(vmid))

    def until(self, condition, *, within_s=60.0, load=lambda: None):
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            load()
            self.tick()
        return True

    def later(self, seconds):
        """Lets time go by for the coordinator: what it remembers is that much older."""
        path = Path(self.host.sandbox.root, "run/pxsched/balance.json")
        document = json.loads(path.read_text())
        for record in document["memory"]["guests"].values():
            record[1] -= seconds
        path.write_text(json.dumps(document))

    def unhurt(self, vmid):
        console = self.host.sandbox.node.own(vmid, "console")
        said = console.read_text("utf-8", "replace") if console.exists() else ""
        assert "Out of memory" not in said
        assert "invoked oom-killer" not in said
        assert self.reading(vmid).swapped_out_mib == 0


@pytest.fixture(scope="module")
def booted(shared_host):
    try:
        linux.files()
    except UserError as error:
        pytest.skip(f"no kernel for a Linux guest: {error}")
    shared_host.settings(f"[node]\nreserved_mib = {RESERVED_MIB}\n{BOUNDS}")
    options = {"guest": "linux", "memory": HIGH, "balloon": LOW, "shares": 0}
    vmids = [shared_host.start(100 + n, **options) for n in range(4)]
    for vmid in vmids:
        shared_host.sandbox.guest(vmid).wait(timeout_s=120)
    return Guests(shared_host, vmids)


@pytest.fixture
def guests(booted):
    """All idle and at the minimum, as Proxmox starts them."""
    booted.limit_mib = None
    for vmid in booted.vmids:
        booted.hold(vmid, 0)
        balloon.set_target(booted.host.root, vmid, LOW, patience_s=5.0)
    Path(booted.host.sandbox.root, "run/pxsched/balance.json").unlink(missing_ok=True)
    deadline = time.monotonic() + 60
    while max(booted.sizes()) > LOW + 2:
        assert time.monotonic() < deadline, booted.sizes()
        time.sleep(0.5)
    return booted


def test_one_grows_and_frees_again(guests):
    one, *others = guests.vmids
    idle = [guests.size(vmid) for vmid in others]
    assert guests.until(lambda: guests.size(one) > LOW + 150, load=lambda: guests.grow(one, 250))
    assert guests.until(lambda: guests.available(one) >= 35)
    grown = guests.size(one)
    guests.hold(one, 0)
    for _ in range(16):
        guests.tick()
        guests.later(600)
    assert guests.size(one) < grown - 60
    assert guests.available(one) >= 35
    assert [guests.size(vmid) for vmid in others] == pytest.approx(idle, abs=16)


def test_all_grow_under_a_limit_of_the_host_and_get_the_same(guests):
    guests.limit_mib = 4 * 220
    for _ in range(16):
        for vmid in guests.vmids:
            guests.grow(vmid, 300)
        guests.tick()
    sizes = guests.sizes()
    assert sum(sizes) <= guests.limit_mib + 24, sizes
    assert sum(sizes) >= guests.limit_mib - 90, sizes
    assert max(sizes) - min(sizes) < 45, sizes
    for vmid in guests.vmids:
        guests.unhurt(vmid)


def test_a_host_that_runs_short_takes_from_all_the_same_before_its_kernel_would_kill(guests):
    for vmid in guests.vmids:
        balloon.set_target(guests.host.root, vmid, 320, patience_s=5.0)
    deadline = time.monotonic() + 30
    while min(guests.sizes()) < 318:
        assert time.monotonic() < deadline, guests.sizes()
        time.sleep(0.5)
    for held_mib in (180, 0):  # touched, and free again
        for vmid in guests.vmids:
            guests.hold(vmid, held_mib)
    def free() -> bool:
        return all((guests.reading(vmid).available_mib or 0) > 200 for vmid in guests.vmids)

    assert guests.until(free), "they say so every two seconds"
    guests.limit_mib = 4 * 220

    def fair() -> bool:
        """Balloons move at their own pace; what they come to is the same."""
        sizes = guests.sizes()
        return sum(sizes) <= guests.limit_mib + 24 and max(sizes) - min(sizes) < 45

    assert guests.until(fair), guests.sizes()
    guests.tick()
    assert fair(), guests.sizes()
    for vmid in guests.vmids:
        guests.unhurt(vmid)


def test_of_two_that_grow_one_stops_and_the_other_gets_its_memory(guests):
    one, other, *_ = guests.vmids
    guests.limit_mib = 2 * LOW + 440
    for _ in range(10):
        guests.grow(one, 300)
        guests.grow(other, 300)
        guests.tick()
    stopped, before = guests.size(one), guests.size(other)
    assert min(stopped, before) > LOW + 30
    guests.hold(one, 0)
    assert guests.until(
        lambda: guests.size(other) > before + 40 and guests.size(one) < stopped - 40,
        load=lambda: guests.grow(other, 300),
    ), (before, stopped, guests.sizes())
    assert sum(guests.sizes()) <= guests.limit_mib + 24


def test_idle_guests_are_neither_killed_nor_driven_into_swap(guests):
    greedy, *idle = guests.vmids
    for vmid in idle:
        assert guests.until(
            lambda vmid=vmid: guests.held[vmid] == 100, load=lambda vmid=vmid: guests.grow(vmid, 100)
        )
    assert guests.until(lambda: all(guests.available(vmid) >= 35 for vmid in idle))
    pids = [guests.host.sandbox.pid(vmid) for vmid in idle]
    faults = [guests.reading(vmid).major_faults for vmid in idle]
    # Less than the idle ones alone would like to have.
    guests.limit_mib = 3 * 180 + LOW
    for _ in range(12):
        guests.grow(greedy, 300)
        guests.tick()
        assert all(guests.available(vmid) >= 15 for vmid in idle)
    assert [guests.host.sandbox.pid(vmid) for vmid in idle] == pids
    for vmid, before in zip(idle, faults, strict=True):
        guests.unhurt(vmid)
        assert guests.reading(vmid).major_faults <= before + 50


def test_a_guest_whose_driver_dies_is_left_at_its_last_value(guests):
    """Taken away, the driver gives the guest all its memory; given back, it does what QEMU was told last."""
    one, other, *_ = guests.vmids
    assert guests.until(lambda: guests.size(one) > LOW + 60, load=lambda: guests.grow(one, 120))
    assert guests.until(lambda: guests.tick() == "")
    last = guests.size(one)
    guests.host.sandbox.guest(one).balloon(driven=False)
    guests.hold(one, 0)
    time.sleep(16)  # until its statistics are too old to believe
    guests.limit_mib = 600  # the host is short, and it would have most to give
    for _ in range(4):
        guests.grow(other, 100)
        guests.tick()
    assert guests.size(one) == HIGH
    skipped = guests.host.state()["last"]["skipped"]
    guests.host.sandbox.guest(one).balloon(driven=True)
    time.sleep(6)
    assert guests.size(one) == pytest.approx(last, abs=2)
    assert "old" in skipped[str(one)]
