"""The demo keeps its promises, and says so when one does not hold."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pxsched.sandbox.demo import Demo

pytestmark = pytest.mark.measures

PACKAGE = Path(__file__).parents[2]


def test_a_broken_promise_is_named_and_counted(capsys):
    demo = Demo()
    demo.promise(True, "the sky is up")
    demo.promise(False, "pigs fly", "not seen")
    assert (demo.made, demo.broken) == (2, 1)
    assert capsys.readouterr().out == "  ok: the sky is up\n  NOT SO: pigs fly (not seen)\n"


@pytest.mark.slow
def test_the_demo_holds_all_its_promises_within_two_minutes():
    done = subprocess.run(
        [sys.executable, "-m", "pxsched", "sandbox", "demo"], capture_output=True, text=True, timeout=150,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "NOT SO" not in done.stdout
    assert done.stdout.endswith("All promises held.\n")
    last = min(4, len(os.sched_getaffinity(0))) - 1
    row = re.search(rf"vCPU {last} +(.+)", done.stdout[done.stdout.rindex("without") :])
    without, pinned, _changed, restored = row[1].split()
    assert without == restored
    assert pinned == str(sorted(os.sched_getaffinity(0))[0])


@pytest.mark.slow
def test_the_demo_fails_when_the_hook_does_nothing(tmp_path):
    """A copy of the program, with a hook that exits at once: the demo must notice."""
    shutil.copytree(PACKAGE / "pxsched", tmp_path / "pxsched")
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/pxsched").write_text("#!/usr/bin/python3\n")
    done = subprocess.run(
        [sys.executable, "-m", "pxsched", "sandbox", "demo"], capture_output=True, text=True, timeout=150,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"NOT SO: vCPUs 0-\d+ are on CPUs .*, in this order", done.stdout)
