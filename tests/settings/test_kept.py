"""Settings that cannot be read are not the defaults: what a file said last stays in force, and is told."""

import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

from pxsched.root import Root
from pxsched.settings import files as settings
from pxsched.settings import kept
from pxsched.settings.files import Settings
from pxsched.settings.kept import Look, Record
from pxsched.settings.policy import Isolation, Wish
from tests.killing import killed_at

GOOD = '[node]\nisolation = "slices"\n[vm.100]\nclass = "dedicated"\nstrict = true\n'
LONG_AGO_S = 3600


class Etc:
    def __init__(self, base: Path) -> None:
        self.base = base
        for directory in "etc/pve/nodes", "etc/pxsched", "etc/default", "run/pxsched":
            (base / directory).mkdir(parents=True)

    def put(self, text: str | bytes, name: str = settings.CLUSTER_FILE, *, age_s: float = 0) -> None:
        path = self.base / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        then = time.time() - age_s
        os.utime(path, (then, then))

    def load(self, *, keep: bool = True) -> Settings:
        return settings.load(Root(str(self.base)), {}, keep=keep)


@pytest.fixture
def etc(tmp_path) -> Etc:
    return Etc(tmp_path)


@pytest.fixture
def good(etc) -> Etc:
    etc.put(GOOD)
    assert in_force(etc.load())
    return etc


def in_force(read: Settings) -> bool:
    policy = read.policy(100)
    return (read.node.isolation, policy.wish, policy.strict) == (Isolation.SLICES, Wish.DEDICATED, True)


def told(read: Settings, *words: str) -> bool:
    """Whether one line says this, and that the old ones are in force."""
    (line,) = read.stale
    return all(word in line for word in (*words, f"/{settings.CLUSTER_FILE}", "stays in force"))


def test_whole_files_have_nothing_to_tell(good):
    assert good.load().stale == ()


@pytest.mark.parametrize(
    "broken", ["[node\n", '[node]\nisolation = "slices', b"[node]\n\xff\xfe", b"\0" * 100, "[" * 5000]
)
def test_a_file_that_is_no_toml_is_what_it_was(good, broken):
    good.put(broken, age_s=LONG_AGO_S)
    read = good.load()
    assert in_force(read) and told(read)
    assert in_force(good.load()), "for as long as it is broken"
    good.put('[vm.100]\nclass = "dedicated"\n')
    assert good.load().stale == () and good.load().node.isolation is Isolation.OFF, "until it is whole"


def test_a_file_that_was_never_whole_is_told_and_the_defaults_hold(etc):
    etc.put("[node\n")
    read = etc.load()
    (line,) = read.stale
    assert "defaults hold" in line and read.node == Settings().node


@pytest.mark.parametrize("blank", ["", "\n", "  \n\t\n"])
def test_an_empty_file_counts_once_it_has_stood_for_a_while(good, blank):
    """It may be a copy in the middle."""
    good.put(blank)
    read = good.load()
    assert in_force(read) and told(read, "empty")
    good.put(blank, age_s=kept.EMPTY_S + 1)
    read = good.load()
    assert not in_force(read) and read.stale == ()


def test_an_empty_file_with_a_comment_is_meant(good):
    good.put("# nothing any more\n")
    assert not in_force(good.load()) and good.load().stale == ()


def test_a_file_that_is_but_its_own_beginning_counts_once_it_has_stood_for_a_moment(good):
    half = GOOD[: GOOD.index("[vm.100]")]
    good.put(half)
    assert in_force(good.load()) and told(good.load(), "cut short")
    good.put(half, age_s=kept.CUT_S + 1)
    assert good.load().policy(100).wish is Wish.AUTO and good.load().stale == ()


def test_a_shorter_file_that_says_something_else_counts_at_once(good):
    good.put("[node]\nmoves = 1\n")
    assert (good.load().node.moves, good.load().stale) == (1, ())


def test_a_file_that_is_taken_away_is_meant(good):
    (good.base / settings.CLUSTER_FILE).unlink()
    assert good.load() == Settings()
    assert good.load() == Settings(), "and forgotten"


def test_a_file_that_goes_with_all_of_etc_pve_is_not(good):
    """pmxcfs is down: the directory is there, and empty."""
    shutil.rmtree(good.base / "etc/pve")
    assert in_force(good.load()) and told(good.load(), "pve-cluster")
    (good.base / "etc/pve").mkdir()
    assert in_force(good.load()) and told(good.load(), "pve-cluster")
    (good.base / "etc/pve/nodes").mkdir()
    assert good.load() == Settings()


def test_after_a_boot_without_etc_pve_it_is_told_that_the_defaults_hold(etc):
    (etc.base / "etc/pve/nodes").rmdir()
    (line,) = etc.load().stale
    assert "pve-cluster" in line and "defaults hold" in line


@pytest.mark.parametrize("trouble", ["a directory", "a loop", "too large"])
def test_a_file_that_cannot_be_read_is_what_it_was(good, trouble):
    path = good.base / settings.CLUSTER_FILE
    path.unlink()
    if trouble == "a directory":
        path.mkdir()
    elif trouble == "a loop":
        path.symlink_to(path.name)
    else:
        path.write_bytes(b"#" * (kept.MOST_BYTES + 1))
    assert in_force(good.load()) and told(good.load(), "cannot be read")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is wanted")
def test_what_may_not_be_read_is_what_it_was(good):
    good.put(GOOD)
    for path in (good.base, *good.base.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    (good.base / "run/pxsched/settings.json").chmod(0o644)
    (good.base / settings.CLUSTER_FILE).chmod(0)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        os._exit(0 if in_force(good.load(keep=False)) and told(good.load(keep=False), "denied") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_other_files_are_read_as_they_are(good):
    good.put('[vm.101]\nclass = "dedicated"\n', settings.NODE_FILE)
    good.put("CPU_GOVERNOR_BUSY=performance\n", settings.DEFAULT_FILE)
    assert good.load().policy(101).wish is Wish.DEDICATED
    good.put("[node")
    good.put("", settings.DEFAULT_FILE)
    read = good.load()
    assert in_force(read)
    assert (read.policy(101).wish, read.defaults.governor) == (Wish.DEDICATED, "performance")
    assert len(read.stale) == 2


def test_who_only_looks_keeps_nothing(etc):
    etc.put(GOOD)
    etc.load(keep=False)
    assert os.listdir(etc.base / "run/pxsched") == []


def test_what_is_as_it_was_needs_no_parser(good, monkeypatch):
    monkeypatch.setitem(sys.modules, "tomllib", None)
    assert in_force(good.load())


def test_values_that_json_has_not_are_read_as_they_are(etc):
    etc.put("[node]\ndeviation = inf\nmoves = 1979-05-27\n")
    first = etc.load()
    assert len(first.warnings) == 2
    assert etc.load() == first


def test_damaged_memory_is_set_aside_and_told_and_the_file_counts(good):
    (good.base / "run/pxsched/settings.json").write_bytes(b'{"files": {"etc/pve/pxsched.toml": {"text": 1}}}')
    read = good.load()
    assert in_force(read) and "settings.json is damaged" in read.stale[0]
    assert (good.base / "run/pxsched/settings.json.damaged").exists()
    assert good.load().stale == ()


@pytest.mark.slow
def test_ten_thousand_damaged_memories_never_end_a_run(good):
    path = good.base / "run/pxsched/settings.json"
    whole, chance = path.read_bytes(), random.Random(13)
    good.put("[node")
    for _ in range(10_000):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(data))
            data[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        path.write_bytes(data)
        begin = time.process_time()
        assert len(good.load().stale) in (1, 2)
        assert time.process_time() - begin < 1


# As values


def test_a_clock_that_was_set_makes_no_file_young_for_ever():
    before = Record(GOOD, {}, 0.0)
    assert kept.judge("f", Look("", mtime_s=9e9), before, now_s=1e9).stale == ""
    assert kept.judge("f", Look("", mtime_s=1e9 + 5), before, now_s=1e9).stale != ""


def test_killed_at_any_write_of_what_is_kept_what_was_said_last_stays_in_force(good):
    newer = "# newer\n" + GOOD + "fifo = 7\n"
    for number in range(20):
        good.put(GOOD)
        good.load()
        good.put(newer)
        killed = killed_at(number, good.load)
        good.put("[node\n")
        assert in_force(good.load()), f"killed at write {number}"
        good.put(newer)
        assert good.load().policy(100).fifo == 7
        if not killed:
            break
    assert 1 < number < 19
