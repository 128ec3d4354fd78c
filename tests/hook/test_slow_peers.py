"""Programs that take their time (systemd, QEMU) delay those that wait for them, and nobody else."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pxsched import hook
from pxsched.guest import process
from pxsched.knobs.balloon import Balloon, bounds
from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Entry
from pxsched.node import settle, turning
from pxsched.node.reconcile import reconcile
from pxsched.node.turns import Report
from pxsched.plugins.view import Setting
from pxsched.root import Root

SLOW = Path(__file__).with_name("slow_systemd.py")
STUCK = range(200, 214)
MOMENT_S = 0.3

needs_two = pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1")


@needs_two
def test_many_strict_starts_share_systemds_reloads_and_none_is_refused(host, tmp_path):
    host.settings('[defaults]\nstrict = true\nmemory = "strict"\n')
    vmids = [host.create(vmid, cores=1) for vmid in range(100, 108)]
    log, mine = tmp_path / "calls", os.sched_getaffinity(0)
    environment = {**os.environ, "PXSCHED_ROOT": host.sandbox.root}
    begin = time.monotonic()
    try:
        hooks = [
            subprocess.Popen([sys.executable, SLOW, log, "2", str(vmid), "pre-start"], env=environment,
                             stdout=subprocess.PIPE, text=True)
            for vmid in vmids
        ]  # fmt: skip
        said = [hook.communicate()[0] for hook in hooks]
        took_s = time.monotonic() - begin
        assert [hook.returncode for hook in hooks] == [0] * len(hooks), said
        reloads = log.read_text().splitlines()
        assert set(reloads) == {"daemon-reload"}
        assert len(reloads) <= 4 and took_s < 2 * len(reloads) + 4
        for vmid in vmids:
            path = Path(host.sandbox.root, f"run/systemd/system/{vmid}.scope.d/pxsched.conf")
            assert path.stat().st_mode & 0o044, "systemd has read it before QEMU starts"
    finally:
        host.pxsched("restore", "--all", check=False)
        os.sched_setaffinity(0, mine)


def test_a_strict_start_that_systemd_does_not_confine_is_refused_and_says_why(host):
    """Here systemd is not what runs the system."""
    host.settings('[defaults]\nstrict = true\nmemory = "strict"\n')
    mine = os.sched_getaffinity(0)
    try:
        done = host.hook(host.create(100, cores=1), "pre-start")
        assert done.returncode == 1
        assert "VM 100 is refused, as its policy is strict: systemd has not read" in done.stdout
        host.settings('[defaults]\nmemory = "strict"\n')
        done = host.hook(host.create(101, cores=1), "pre-start")
        assert done.returncode == 0 and "VM 101 starts unconfined" in done.stdout
    finally:
        host.pxsched("restore", "--all", check=False)
        os.sched_setaffinity(0, mine)


class StuckGuests:
    """QEMUs that answer every question, and never do what their balloon is told."""

    def __init__(self, base: str) -> None:
        self.root = Root(base)
        self.asked: list[int] = []
        self._listeners: list[socket.socket] = []
        for vmid in STUCK:
            listener = socket.socket(socket.AF_UNIX)
            directory = os.open(f"{base}/run/qemu-server", os.O_PATH)
            listener.bind(f"/proc/self/fd/{directory}/{vmid}.qmp")
            os.close(directory)
            listener.listen()
            self._listeners.append(listener)
            threading.Thread(target=self._serve, args=(vmid, listener), daemon=True).start()

    def _serve(self, vmid: int, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
                with peer, peer.makefile("rw") as stream:
                    print('{"QMP": {}}', file=stream, flush=True)
                    for line in stream:
                        if json.loads(line)["execute"] == "balloon":
                            self.asked.append(vmid)
                        else:
                            print('{"return": {"actual": 1073741824}}', file=stream, flush=True)
            except OSError:
                if listener.fileno() < 0:
                    return

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()

    def turn(self, target_mib: int) -> Report:
        """A pass over these guests."""
        settings = [
            Setting(Balloon(vmid, 1), str(target_mib), vmid, "balloon", bounds(512, 2048)) for vmid in STUCK
        ]
        with ledgers.locked(self.root) as ledger:
            report = reconcile(self.root, ledger, settings, set(STUCK))
        turning.run(self.root, report)
        return report

    def entries(self) -> list[Entry]:
        return list(ledgers.peek(self.root).journal.of(STUCK).values())


@pytest.fixture
def stuck(host) -> Iterator[StuckGuests]:
    guests = StuckGuests(host.sandbox.root)
    yield guests
    guests.close()


def test_guests_that_do_not_obey_delay_nobody_elses_start(host, stuck):
    host.settings("[defaults]\nstrict = true\n")
    host.create(100, cores=1)
    reports: list[Report] = []
    passing = threading.Thread(target=lambda: reports.append(stuck.turn(600)))
    passing.start()
    waits_s = []
    started = False
    while passing.is_alive():
        if stuck.asked and not started:
            started = host.start(100).code == 0
        begin = time.monotonic()
        with ledgers.locked(stuck.root, ()):
            waits_s.append(time.monotonic() - begin)
        time.sleep(0.005)
    assert started and len(waits_s) > 1
    assert max(waits_s) < MOMENT_S, "the lock is to be had at any time"
    assert len(reports[0].failed) == len(STUCK) and sorted(set(stuck.asked)) == list(STUCK)


@pytest.mark.parametrize("strict", [True, False])
def test_a_strict_vm_waits_for_the_lock_where_others_start_unplaced(host, monkeypatch, capfd, strict):
    host.settings(f"[defaults]\nstrict = {str(strict).lower()}\n")
    host.create(100, cores=1)
    root, held = Root(host.sandbox.root), threading.Event()
    monkeypatch.setattr(settle, "LOCK_S", MOMENT_S / 3)

    def hold() -> None:
        with ledgers.locked(root, ()):
            held.set()
            time.sleep(2 * MOMENT_S)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    assert hook.main(["100", "pre-start"], {"PXSCHED_ROOT": root.base}) == 0
    holder.join()
    assert (100 in ledgers.peek(root).claims) == strict
    assert (f"locked by process {os.getpid()}" in capfd.readouterr().out) != strict


def test_a_hook_asks_no_guest_for_memory_and_the_timer_does(host):
    """The guest's QEMU is stopped, so that it answers nothing; its balloon is no longer to be managed."""
    host.settings("[defaults]\nballoon = false\n")
    host.started(100, cores=1, balloon=16)
    root = Root(host.sandbox.root)
    qemu = process.find(root, 100)
    assert qemu is not None
    key = Balloon(100, qemu.start_ticks).key
    with ledgers.locked(root) as ledger:
        ledger.journal[key] = Entry(100, "balloon", bounds(16, 32), "24", 0)
        ledgers.save(root, ledger)
    os.kill(qemu.pid, signal.SIGSTOP)
    try:
        assert host.hook(100, "pre-stop").returncode == 0
        entry = ledgers.peek(root).journal[key]
        assert (entry.failures, entry.lease) == (0, None), "nobody was asked"
    finally:
        os.kill(qemu.pid, signal.SIGCONT)
    host.pxsched("tick")
    assert key not in ledgers.peek(root).journal


def test_a_pass_ends_in_time_and_leaves_those_out_for_longer_each_time(stuck, monkeypatch):
    begin = time.monotonic()
    stuck.turn(600)
    assert time.monotonic() - begin < turning.PATIENCE_S + 1
    assert {entry.lease for entry in stuck.entries()} == {None}
    offs_s = []
    for _ in range(4):
        (retry_ns,) = {entry.retry_ns // 10**9 for entry in stuck.entries()}
        stuck.asked.clear()
        now_ns = ledgers.now_ns()
        offs_s.append(retry_ns - now_ns // 10**9)
        stuck.turn(700)
        assert stuck.asked == [], "they have their time off"
        with monkeypatch.context() as later:
            later.setattr(ledgers, "now_ns", lambda retry_ns=retry_ns: (retry_ns + 1) * 10**9)
            stuck.turn(700)
        assert sorted(stuck.asked) == list(STUCK)
    assert all(longer > 1.5 * off for off, longer in pairwise(offs_s)), offs_s
