"""What leaves the program is seen as it is: no character moves a cursor, hides, or ends a line of ours."""

import errno
import io
import json
import os
import pty
import subprocess
import sys

import pytest

from pxsched import material, output

HARMLESS = ["VM 100 (web-1)", "Größe 5 €", "日本語", "a │ b ─ c · d", "שלום", ""]
HOSTILE = {
    "an escape sequence": "\x1b[2J",
    "a C1 control, which 8-bit terminals take for one": "\x9b31m",
    "a bell and a backspace": "\x07\x08",
    "line ends of all kinds": "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
    "bidirectional controls": "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    "zero-width characters": "\u200b\u200c\u200d\u2060\ufeff\u00ad",
    "letters and marks of which nothing is seen": "\u3164\uffa0\u115f\u034f\ufe0f\U000e0100\u2800",
    "tags": "\U000e0041",
    "half of a surrogate pair, as of a file name that is no UTF-8": "\ud800\udcff",
    "a NUL": "\0",
    "a tabulator": "\t",
    "blanks that are not a blank": "\xa0\u3000",
}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_seen_stays(text):
    assert output.printable(text) == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_of_everything_else_there_remains_a_question_mark(text):
    assert (
        output.printable(f"a{text}b")
        == "a" + "".join("?" if ord(c) < 32 or c not in "[2J31m" else c for c in text) + "b"
    )


def test_every_control_and_format_character_of_unicode_is_replaced():
    import unicodedata

    bad = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    ]
    assert output.printable("".join(bad)) == "?" * len(bad)


def test_a_line_ends_where_we_end_it():
    assert output.lines(["one\ntwo", "three"]) == "one?two\nthree\n"


class Full(io.StringIO):
    """A stream on a device without room."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_closed_or_full_error_output_is_no_failure(monkeypatch):
    for stream in (Full(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        output.complain("nobody hears this")


def test_what_cannot_be_said_is_an_error_for_the_caller():
    with pytest.raises(OSError, match="No space left"):
        output.say("this", to=Full())


def test_a_locale_that_lacks_a_letter_is_no_failure():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    output.say("Größe 日", to=stream)
    assert raw.getvalue() == b"Gr\\xf6\\xdfe \\u65e5\n"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_json_holds_nothing_hostile_for_those_who_print_it(text):
    said = output.json_text({text: [text, {"a": (text,)}]})
    assert said.isascii() and said.isprintable()
    document = json.loads(said)
    [(key, (first, second))] = document.items()
    assert all(line.isprintable() for part in (key, first, *second["a"]) for line in part.split("\n"))


def test_the_journal_gets_one_line(monkeypatch):
    heard = []
    monkeypatch.setattr("syslog.syslog", lambda priority, line: heard.append(line))
    output.journal("a\n<0>b\x1b[m")
    assert heard == ["a?<0>b?[m"]


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--bundle", "x.tar.gz"], ["defrag", "--dry-run"]])
def test_a_long_command_tells_a_terminal_how_far_it_is_and_a_pipe_nothing(words, machines, tmp_path):
    command = [*material.again("--root", str(machines / "pepc-adl0/root"), *words)]
    ours, theirs = pty.openpty()
    told = subprocess.run(
        command, cwd=tmp_path, env=material.environment(), stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    piped = subprocess.run(command, cwd=tmp_path, env=material.environment(), capture_output=True)
    assert told.returncode == piped.returncode
    assert b"looking at" in shown and shown.count(b"\r\x1b[K") > 2
    assert b"looking at" not in piped.stderr and b"\x1b" not in piped.stderr + piped.stdout
