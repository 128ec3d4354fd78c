"""The lock between processes; what the ledger does with it is in test_ledger.py."""

import subprocess
import threading
import time
from pathlib import Path

import pytest

from pxsched import lock
from pxsched.errors import UserError
from pxsched.lock import Locked
from pxsched.root import Root

FILE = "run/pxsched/lock"


@pytest.fixture
def root(tmp_path):
    return Root(str(tmp_path))


def test_who_comes_second_is_told_at_once_when_it_has_no_patience(root):
    with lock.held(root, FILE, patience_s=0):
        begin = time.monotonic()
        with pytest.raises(Locked, match=r"run/pxsched/lock is locked"), lock.held(root, FILE, patience_s=0):
            pass
        assert time.monotonic() - begin < 1


def test_who_waits_gets_it_once_it_is_free(root):
    waiting = threading.Event()
    got = []

    def second():
        waiting.set()
        with lock.held(root, FILE, patience_s=10):
            got.append(time.monotonic())

    with lock.held(root, FILE, patience_s=0):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        time.sleep(0.1)
        assert got == []
    thread.join(5)
    assert len(got) == 1


def test_a_child_that_outlives_the_holder_does_not_have_it(root):
    with lock.held(root, FILE, patience_s=0):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with lock.held(root, FILE, patience_s=0):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_nobody_else_may_open_it(root):
    with lock.held(root, FILE, patience_s=0):
        file = Path(root.path(FILE))
        assert file.stat().st_mode & 0o077 == 0
        assert file.parent.stat().st_mode & 0o077 == 0


def test_a_link_in_its_place_is_an_error_and_what_it_names_stays(root, tmp_path):
    other = tmp_path / "other"
    other.write_text("kept")
    link = Path(root.path(FILE))
    link.parent.mkdir(parents=True)
    link.symlink_to(other)
    with pytest.raises(UserError, match="cannot use"), lock.held(root, FILE, patience_s=0):
        pass
    assert other.read_text() == "kept"
