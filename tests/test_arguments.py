"""What the arguments of all commands have in common: times, and the files that are written."""

import argparse
import os
import stat
import threading

import pytest

from pxsched.arguments import seconds, write_file
from pxsched.errors import UserError


@pytest.mark.parametrize("text", ["0.4", "61", "nan", "inf", "-1", "soon", ""])
def test_a_time_out_of_bounds_is_told_with_the_bounds(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text!r} is not from 0.5 to 60 seconds$"):
        seconds(0.5, 60)(text)
    assert seconds(0.5, 60)("0.5") == 0.5


def test_a_file_is_replaced_as_a_whole_and_readable_by_everybody(tmp_path):
    file = tmp_path / "node.svg"
    file.write_text("before")
    file.chmod(0o600)
    write_file(str(file), "<svg/>")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("<svg/>", 0o644)
    assert os.listdir(tmp_path) == ["node.svg"]


def test_a_link_of_the_admins_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to("node.svg")
    write_file(str(tmp_path / "link"), "<svg/>")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "node.svg").read_text() == "<svg/>"


def test_a_pipe_or_device_is_written_to_and_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(pipe.read_text()))
    reader.start()
    write_file(str(pipe), "<svg/>")
    reader.join(10)
    assert said == ["<svg/>"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write .*: Is a directory$"):
        write_file(str(tmp_path), "")
