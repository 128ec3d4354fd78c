"""Children run as Proxmox's own do, whatever surrounds us."""

import os
import subprocess
import sys
import threading

import pytest

from pxsched import child


@pytest.fixture
def unit(monkeypatch):
    """The surroundings of our unit, on a node whose locale was never generated."""
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    before = os.umask(0o077)
    yield
    os.umask(before)


SHOW = ["sh", "-c", "umask; echo $LC_ALL; cat; echo oops >&2; exit 3"]


def test_a_child_has_proxmoxs_umask_and_locale_and_nothing_to_read(unit):
    done = child.run(SHOW)
    assert (done.stdout, done.stderr, done.returncode) == ("0022\nC\n", "oops\n", 3)


def test_also_with_an_environment_of_its_own(unit):
    assert child.run(SHOW, env={"PATH": "/usr/bin:/bin"}).stdout == "0022\nC\n"


def test_we_stay_as_we_were(unit):
    child.run(SHOW)
    assert (os.umask(0o077), os.environ["LC_ALL"]) == (0o077, "xx_YY.UTF-8")


def test_children_of_a_library_have_them_too(unit):
    with child.surroundings():
        assert subprocess.run(SHOW, input="", capture_output=True, text=True).stdout == "0022\nC\n"
    assert (os.umask(0o077), os.environ["LC_ALL"]) == (0o077, "xx_YY.UTF-8")


def test_a_failure_within_them_leaves_us_as_we_were(unit, monkeypatch):
    monkeypatch.delenv("LC_ALL")
    with pytest.raises(KeyError), child.surroundings():
        raise KeyError
    assert os.umask(0o077) == 0o077
    assert "LC_ALL" not in os.environ


def test_a_child_that_does_not_end_is_ended():
    with pytest.raises(child.Late):
        child.run(["sleep", "60"], patience_s=0.1)


def test_a_program_that_is_not_there_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        child.run(["/nonexistent/pvesh"])


def test_output_that_is_no_text_is_no_fault():
    done = child.run([sys.executable, "-c", "import os; os.write(1, b'a\\xffb')"])
    assert done.stdout == "a\N{REPLACEMENT CHARACTER}b"


def test_threads_may_start_children_at_the_same_time(unit):
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(child.run(SHOW).stdout)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["0022\nC\n"] * 8
