"""irqbalance keeps its hands off our interrupts, and gets them back; the admin's bans stay the admin's."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from pxsched.host import interrupts, irqbalance
from pxsched.host.devices import Device
from pxsched.knobs.irqbalance import BANNED, FREE, CpuBan, InterruptBan
from pxsched.knobs.knob import Gone, from_key
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.node import turning
from pxsched.node.reconcile import reconcile
from pxsched.node.turns import Report
from pxsched.plugins.interrupts import bannable
from pxsched.plugins.view import Setting
from pxsched.root import Root

from .conftest import ADMINS, HOSTS, OURS, UNTOUCHED, Irqbalance

pytestmark = pytest.mark.measures


def pass_over(
    running: Irqbalance, ours: Collection[int], *, vmid: int = 100, insist: bool = False
) -> tuple[Report, Ledger]:
    """One pass of ours that wants these interrupts banned."""
    seen = irqbalance.look(running.root)
    daemon = seen.daemon if seen else None
    settings = [
        Setting(InterruptBan(daemon.pid, daemon.start_ticks, number), BANNED, vmid, "interrupts")
        for number in ours
        if daemon
    ]
    with ledgers.locked(running.root) as ledger:
        report = reconcile(running.root, ledger, settings, None, insist=insist)
    turning.run(running.root, report)
    return report, ledgers.peek(running.root)


class TestBans:
    def test_ours_join_the_admins_and_leave_again(self, running: Irqbalance) -> None:
        assert running.bans == {ADMINS}
        report, _ledger = pass_over(running, OURS)
        assert running.bans == {ADMINS, *OURS}
        assert report.failed == []
        pass_over(running, ())
        assert running.bans == {ADMINS}

    def test_nothing_is_asked_twice(self, running: Irqbalance) -> None:
        pass_over(running, OURS)
        report, _ledger = pass_over(running, OURS)
        assert report.turned == []

    def test_one_of_ours_that_the_admin_had_banned_stays_banned(self, running: Irqbalance) -> None:
        pass_over(running, (ADMINS, *OURS))
        pass_over(running, ())
        assert running.bans == {ADMINS}

    def test_a_ban_that_somebody_else_sets_meanwhile_survives(self, running: Irqbalance) -> None:
        pass_over(running, OURS)
        irqbalance.ban(running.root, running.daemon, [*running.setup.irqs, HOSTS])
        pass_over(running, OURS[:1])
        assert running.bans == {ADMINS, HOSTS, OURS[0]}
        pass_over(running, ())
        assert running.bans == {ADMINS, HOSTS}

    def test_bans_that_somebody_else_drops_come_back_as_drift(self, running: Irqbalance) -> None:
        pass_over(running, OURS)
        irqbalance.ban(running.root, running.daemon, [])
        _report, ledger = pass_over(running, OURS)
        assert running.bans == set(OURS)
        assert {entry.drifts for entry in ledger.journal.values()} == {1}

    def test_the_last_one_given_back_leaves_an_empty_list(self, base: object, running: Irqbalance) -> None:
        irqbalance.ban(running.root, running.daemon, [])
        pass_over(running, OURS[:1])
        pass_over(running, ())
        assert running.setup.irqs == ()

    def test_it_leaves_ours_alone_and_moves_the_others(self, running: Irqbalance) -> None:
        running.wait(lambda: running.mask(OURS[0]).read_text().strip() != UNTOUCHED)
        pass_over(running, OURS)
        for number in (HOSTS, *OURS):
            running.mask(number).write_text(f"{UNTOUCHED}\n")
        # The ban makes it look anew at everything it still has a say in.
        running.wait(lambda: running.mask(HOSTS).read_text().strip() != UNTOUCHED)
        time.sleep(2)
        assert [running.mask(number).read_text().strip() for number in OURS] == [UNTOUCHED] * len(OURS)
        pass_over(running, ())
        running.wait(lambda: running.mask(OURS[0]).read_text().strip() != UNTOUCHED)


class TestARestart:
    def test_ours_are_banned_again(self, running: Irqbalance) -> None:
        pass_over(running, OURS)
        running.restart()
        assert running.bans == {ADMINS}
        pass_over(running, OURS)
        assert running.bans == {ADMINS, *OURS}

    def test_what_the_new_run_banned_by_itself_stays_banned_at_the_end(self, running: Irqbalance) -> None:
        pass_over(running, OURS)
        running.restart(banned=(OURS[0],))
        pass_over(running, OURS)
        assert running.bans == set(OURS)
        pass_over(running, ())
        assert running.bans == {OURS[0]}

    def test_without_a_daemon_nothing_is_left_to_do(self, running: Irqbalance) -> None:
        daemon = running.daemon
        knob = InterruptBan(daemon.pid, daemon.start_ticks, OURS[0])
        root = running.root
        pass_over(running, OURS)
        running.stop()
        assert irqbalance.look(root) is None
        with pytest.raises(Gone):
            knob.write(root, FREE)


class TestLimits:
    def test_a_list_beyond_its_buffer_is_not_even_sent(self, running: Irqbalance) -> None:
        with pytest.raises(OSError, match="no longer list") as caught:
            irqbalance.ban(running.root, running.daemon, range(1000, 1150))
        assert caught.value.errno == errno.EMSGSIZE
        assert running.bans == {ADMINS}

    def test_the_longest_list_arrives_whole(self, running: Irqbalance) -> None:
        numbers = [*range(1000, 1096), 7]
        assert len(irqbalance._ban_request(numbers)) == irqbalance.MAX_REQUEST_BYTES
        irqbalance.ban(running.root, running.daemon, numbers)
        assert running.bans == set(numbers)

    def test_of_many_vectors_as_many_are_wanted_as_fit(self, running: Irqbalance) -> None:
        vectors = tuple(interrupts.Interrupt(1000 + at, (f"vfio-msix[{at}](x)",)) for at in range(257))
        chosen = [vector.number for vector in bannable(vectors, running.setup)]
        report, _ledger = pass_over(running, chosen)
        assert report.failed == []
        assert running.bans == {ADMINS, *chosen}
        assert len(chosen) > 90
        assert [vector.number for vector in bannable(vectors, running.setup)] == chosen

    def test_a_list_that_it_takes_otherwise_is_taken_back(
        self, running: Irqbalance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(irqbalance, "MAX_REQUEST_BYTES", 10_000)
        with pytest.raises(OSError):
            irqbalance.ban(running.root, running.daemon, range(1000, 1150))
        assert running.bans == {ADMINS}


class TestSilence:
    def test_a_stopped_daemon_costs_a_moment_and_loses_nothing(self, running: Irqbalance) -> None:
        pass_over(running, OURS)
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            report, ledger = pass_over(running, ())
            assert time.monotonic() - started < 3
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        assert len(ledger.journal) == len(OURS)
        assert report.failed
        assert running.process.poll() is None
        irqbalance._deaf_until.clear()
        _report, ledger = pass_over(running, ())
        assert len(ledger.journal) == len(OURS), "who failed is left alone for a while"
        _report, ledger = pass_over(running, (), insist=True)
        assert ledger.journal == {}
        assert running.bans == {ADMINS}

    def test_a_look_at_a_stopped_daemon_still_sees_that_it_is_there(self, running: Irqbalance) -> None:
        daemon = running.daemon
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            assert irqbalance.look(running.root) == irqbalance.Running(daemon, None)
        finally:
            os.kill(running.process.pid, signal.SIGCONT)

    def test_giving_up_on_an_answer_does_not_kill_it(
        self, running: Irqbalance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(irqbalance, "_wait_until_idle", lambda root, daemon, deadline: True)
        monkeypatch.setattr(irqbalance, "PATIENCE_S", 0.1)
        daemon = running.daemon
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError):
                irqbalance.setup(running.root, daemon)
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        time.sleep(0.5)
        assert running.process.poll() is None
        irqbalance._deaf_until.clear()
        assert running.bans == {ADMINS}


class TestCpus:
    def test_it_keeps_off_these_cpus_and_comes_back(self, running: Irqbalance) -> None:
        daemon = running.daemon
        knob = from_key(CpuBan(daemon.pid, daemon.start_ticks).key)
        original = knob.read(running.root)
        knob.write(running.root, "2")
        assert knob.same(knob.read(running.root), "2"), "what was asked counts until the next scan"
        irqbalance._asked_cpus.clear()
        running.wait(lambda: knob.same(knob.read(running.root), "2"))
        running.wait(lambda: running.mask(HOSTS).read_text().strip().lstrip("0") == "1")
        knob.write(running.root, original)
        irqbalance._asked_cpus.clear()
        running.wait(lambda: knob.read(running.root) == original)


class TestWhereItListens:
    def test_on_an_abstract_socket_where_it_has_no_directory(self, running_abstract: Irqbalance) -> None:
        assert running_abstract.daemon.pid == running_abstract.process.pid
        pass_over(running_abstract, OURS)
        assert running_abstract.bans == {ADMINS, *OURS}

    def test_in_user_and_network_namespaces_of_its_own(self, running_confined: Irqbalance) -> None:
        pass_over(running_confined, OURS)
        assert running_confined.bans == {ADMINS, *OURS}
        pass_over(running_confined, ())
        assert running_confined.bans == {ADMINS}

    def test_a_socket_that_its_daemon_left_behind_is_no_daemon(self, running: Irqbalance) -> None:
        left = running.base / "left"
        (left / "run/irqbalance").mkdir(parents=True)
        (left / "run/irqbalance/irqbalance99999999.sock").touch()
        assert irqbalance.find(Root(str(left))) is None

    def test_anybody_else_who_takes_its_name_is_not_believed(self) -> None:
        impostor = (
            "import socket,sys,os\n"
            "open('/proc/self/comm','w').write('irqbalance')\n"
            "os.setuid(65534)\n"
            "s=socket.socket(socket.AF_UNIX)\n"
            "s.bind(f'\\0irqbalance{os.getpid()}.sock')\n"
            "s.listen()\n"
            "print('ready',flush=True)\n"
            "sys.stdin.read()\n"
        )
        if os.geteuid() != 0:
            pytest.skip("needs root")
        with subprocess.Popen(
            [sys.executable, "-c", impostor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            found = irqbalance.find(Root())
            assert found is None or found.pid != process.pid
            assert irqbalance.start_of(Root(), process.pid) is None
            process.communicate()


def test_the_vectors_of_the_fake_machine_are_seen(running: Irqbalance) -> None:
    found = interrupts.of_devices(running.root, [Device("0000:17:02.0")])
    assert [vector.number for vector in found] == list(OURS)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pxsched.ledger import file as ledgers
from pxsched.host import irqbalance
from pxsched.knobs.irqbalance import BANNED, InterruptBan
from pxsched.plugins.view import Setting
from pxsched.node import turning
from pxsched.node.reconcile import reconcile
from pxsched.root import Root


root, left = Root(sys.argv[2]), int(sys.argv[3])
ask = irqbalance._ask

def until_killed(root, daemon, request):
    global left
    answer = ask(root, daemon, request)
    left -= request.startswith("settings")
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

irqbalance._ask = until_killed
daemon = irqbalance.find(root)
bans = [InterruptBan(daemon.pid, daemon.start_ticks, int(number)) for number in sys.argv[4:]]
with ledgers.locked(root) as ledger:
    report = reconcile(root, ledger, [Setting(ban, BANNED, 100, "interrupts") for ban in bans], None)
turning.run(root, report)
"""


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_killed_after_any_ban_the_next_pass_gives_all_of_them_back(running: Irqbalance, writes: int) -> None:
    checkout = str(Path(__file__).parents[2])
    numbers = [str(number) for number in OURS]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, checkout, running.root.base, str(writes), *numbers], timeout=30
    )
    assert done.returncode == -signal.SIGKILL
    assert running.bans == {ADMINS, *OURS[:writes]}
    pass_over(running, ())
    assert running.bans == {ADMINS}
