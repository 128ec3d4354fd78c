"""Child processes: `pvesh`, `systemctl` and the like, as Proxmox itself would start them.

Children inherit umask and locale. With our unit's UMask=0077 pveproxy could not read task logs that Proxmox's
tools made; for a locale that is not generated Perl prints a warning, which proxmoxer takes for a failure.
Proxmox starts hookscripts with umask 022 and LC_ALL=C, and so do we start its tools.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

UMASK = 0o022
LOCALE = "C"
PATIENCE_S = 60.0

Finished = subprocess.CompletedProcess[str]
# What `run` raises for a child that does not end in time.
Late = subprocess.TimeoutExpired


def run(
    argv: Sequence[str], *, patience_s: float = PATIENCE_S, env: Mapping[str, str] | None = None
) -> Finished:
    """Runs a program to its end; its exit code is for the caller to judge.

    env: the whole environment, ours when None; LC_ALL is set in either. Raises OSError when it cannot be
    started, and Late when it was killed after patience_s.
    """
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=patience_s,
        env={**(os.environ if env is None else env), "LC_ALL": LOCALE},
        umask=UMASK,
        check=False,
    )


@contextmanager
def surroundings() -> Iterator[None]:
    """Umask and locale for children that a library starts. They are the process's: not for two threads."""
    umask, locale = os.umask(UMASK), os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = LOCALE
    try:
        yield
    finally:
        os.umask(umask)
        if locale is None:
            del os.environ["LC_ALL"]
        else:
            os.environ["LC_ALL"] = locale
