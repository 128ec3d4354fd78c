"""tools/release builds what is committed for each Debian, and says by which checksums it is known.

A stand-in for mmdebstrap takes the source and hands out what was "built" of it: a real one fetches a compiler
and takes minutes. That the package is the same wherever it is built shows test_package.py.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import CHECKOUT

MMDEBSTRAP = """#!/bin/sh
set -eu
for word; do
    case $word in
        --customize-hook=tar-in*) set -- $word; source=$2 ;;
        --customize-hook=sync-out*) set -- $word; to=$3 ;;
    esac
done
[ -z "${STALL:-}" ] || { echo "$source" >"$STALL"; sleep 30; }
gzip -n <"$source" >"$to/pxsched_0_all.deb"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of one commit, with a file that is not committed."""
    place = tmp_path / "checkout"
    (place / "tools").mkdir(parents=True)
    shutil.copy(CHECKOUT / "tools/release", place / "tools")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost", "-C", str(place)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    (place / "left-over").write_text("not committed")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mmdebstrap").write_text(MMDEBSTRAP)
    (tmp_path / "bin/mmdebstrap").chmod(0o755)
    return place


def environment(checkout: Path, **more: str) -> dict[str, str]:
    place = checkout.parent
    (place / "tmp").mkdir(exist_ok=True)
    return {**os.environ, "PATH": f"{place}/bin:{os.environ['PATH']}", "TMPDIR": str(place / "tmp"), **more}


def release(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [checkout / "tools/release", *words]
    return subprocess.run(command, env=environment(checkout), capture_output=True, text=True, check=False)


def test_each_debian_gets_its_package_with_its_checksum(checkout, tmp_path):
    done = release(checkout, "--to", str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    for suite in ("bookworm", "trixie"):
        built = tmp_path / "one" / suite
        sum_of = hashlib.sha256((built / "pxsched_0_all.deb").read_bytes()).hexdigest()
        assert (built / "SHA256SUMS").read_text() == f"{sum_of}  ./pxsched_0_all.deb\n"
        subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=built, check=True)
    assert os.listdir(tmp_path / "tmp") == []


def test_two_builds_are_made_of_the_same_bytes_and_of_what_is_committed(checkout, tmp_path):
    for name in ("one", "two"):
        assert release(checkout, f"--to={tmp_path / name}", "trixie").returncode == 0
        time.sleep(1.1)  # a time in the archive would differ
    one, two = ((tmp_path / name / "trixie/pxsched_0_all.deb").read_bytes() for name in ("one", "two"))
    assert one == two
    listed = subprocess.run(["tar", "-tz"], input=one, capture_output=True, check=True).stdout.decode()
    assert listed.split() == ["pxsched/", "pxsched/tools/", "pxsched/tools/release"]


def test_what_it_does_not_know_is_said_with_how_to_use_it(checkout):
    done = release(checkout, "--unknown")
    assert (done.returncode, "usage: tools/release" in done.stderr) == (2, True)


def test_stopped_half_way_it_leaves_nothing(checkout, tmp_path):
    began = tmp_path / "began"
    command = [checkout / "tools/release", "--to", str(tmp_path / "one"), "trixie"]
    child = subprocess.Popen(command, env=environment(checkout, STALL=str(began)), start_new_session=True)
    while not began.exists():
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait(60) != 0
    assert os.listdir(tmp_path / "tmp") == []
