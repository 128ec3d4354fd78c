"""Prometheus's own tool, from Debian's package: unpacked into the user's cache, where nothing starts it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found:
        return found
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pxsched-tests/prometheus"
    tool = cache / "usr/bin/promtool"
    if not tool.exists():
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            "apt-get download prometheus && dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb",
            shell=True, cwd=cache, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no promtool can be had: {done.stderr.strip()[-200:]}")
    return str(tool)
