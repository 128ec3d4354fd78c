"""A file that is replaced has the old content or the new, and nobody has us write elsewhere."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from pxsched.replacing import NEW, replace_file


def test_the_new_content_takes_the_place_of_the_old(tmp_path):
    file = tmp_path / "file"
    for content in (b"one", b"", b"two" * 100_000):
        replace_file(str(file), content)
        assert file.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("umask", "mode", "found"), [(0o077, None, 0o600), (0o022, None, 0o644),
                                                      (0o077, 0o755, 0o755), (0, 0o600, 0o600)])  # fmt: skip
def test_the_mode_is_the_umasks_unless_one_is_given(tmp_path, umask, mode, found):
    file = tmp_path / "file"
    file.touch(0o640)
    before = os.umask(umask)
    try:
        replace_file(str(file), b"x", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == found


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        code = 0
        try:
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            replace_file(str(file), b"x" * 1000)
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EFBIG
    assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["file"])


@pytest.mark.parametrize("trap", ["symlink", "hardlink", "fifo"])
def test_what_somebody_put_in_its_way_is_not_written_to(tmp_path: Path, trap):
    precious, file = tmp_path / "precious", tmp_path / "file"
    precious.write_text("precious")
    new = Path(f"{file}{NEW}")
    {
        "symlink": lambda: new.symlink_to(precious),
        "hardlink": lambda: new.hardlink_to(precious),
        "fifo": lambda: os.mkfifo(new),
    }[trap]()
    replace_file(str(file), b"x")
    assert (precious.read_text(), file.read_bytes()) == ("precious", b"x")
    assert not file.is_symlink() and stat.S_ISREG(file.lstat().st_mode) and not new.exists()


def test_what_is_to_last_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    done = []
    real = os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(os.fstat(fd).st_size))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("named"), real(*names)))
    replace_file(str(tmp_path / "file"), b"abc", durable=True)
    replace_file(str(tmp_path / "file"), b"abcd")
    assert done == [3, "named", "named"]


def test_where_there_is_no_directory_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        replace_file(str(tmp_path / "none/file"), b"x")
