"""`pxsched sandbox shell`: a node to play with, with its own `qm` and `pxsched`, and no trace of it after."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pxsched import material
from pxsched.sandbox import commands, linux

pytestmark = pytest.mark.measures


def shell(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pxsched", "sandbox", "shell"],
        input=script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        env={**material.environment(), "SHELL": "/bin/sh", **environment},
    )  # fmt: skip
    return done.stdout


def test_what_it_tells_to_type_places_a_vm(tmp_path):
    """The very lines of its welcome, without their explanations."""
    lines = [line[2:60].split("   ")[0] for line in commands._WELCOME.splitlines() if line.startswith("  ")]
    assert len(lines) == 4
    said = shell("\n".join([*lines, "qm list", "echo in $PXSCHED_ROOT"]))
    assert "VM 100 on sandbox: enabled" in said
    assert "pxsched: VM 100 is shared" in said
    assert "VM 100: shared, running" in said
    place = said.rpartition("in ")[2].strip()
    assert place.startswith("/") and not Path(place).exists()


def test_its_commands_are_this_very_program_wherever_another_is_installed(tmp_path):
    (tmp_path / "pxsched").write_text("#!/bin/sh\necho another\n")
    (tmp_path / "pxsched").chmod(0o755)
    said = shell("pxsched --version", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "another" not in said and said.splitlines()[-1].startswith("pxsched ")


def test_clean_deletes_what_the_sandbox_keeps_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PXSCHED_CACHE", str(tmp_path))
    (tmp_path / "kernel/boot").mkdir(parents=True)
    (tmp_path / "root-0123.cpio").touch()
    (tmp_path / "mine").touch()
    assert sorted(path.name for path in linux.forget()) == ["kernel", "root-0123.cpio"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert linux.forget() == []
    (tmp_path / "mine").unlink()
    linux.forget()
    assert not tmp_path.exists()
