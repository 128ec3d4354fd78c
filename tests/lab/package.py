"""The Debian package of the checkout, built outside the lab and handed in."""

import re
import shutil
import subprocess
from pathlib import Path

from .machine import CHECKOUT

TOOLS = {"dpkg-buildpackage": "dpkg-dev", "dh": "debhelper", "dh_python3": "dh-python", "git": "git"}


def missing_tools() -> list[str]:
    return [package for tool, package in TOOLS.items() if not shutil.which(tool)]


def build(directory: Path, *, version_suffix: str = "") -> Path:
    """A .deb of what git knows or would know; the suffix makes a later version of it."""
    source = directory / f"source{version_suffix}" / "pxsched"
    listed = ["git", "-C", str(CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (CHECKOUT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, source / name, follow_symlinks=False)
    changelog = source / "debian/changelog"
    changelog.write_text(re.sub(r"\(([^)]+)\)", rf"(\1{version_suffix})", changelog.read_text(), count=1))
    done = subprocess.run(
        ["dpkg-buildpackage", "-us", "-uc", "-b"], cwd=source, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise RuntimeError(f"dpkg-buildpackage: {done.stdout[-2000:]}{done.stderr[-1000:]}")
    (built,) = source.parent.glob("pxsched_*_all.deb")
    return built
