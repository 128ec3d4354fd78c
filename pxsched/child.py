"""Child processes: `pvesh`, `systemctl` and the like, as Proxmox itself would start them.

Children inherit umask and locale. With our unit's UMask=0077 pveproxy could not read task logs that Proxmox's
tools made; for a locale that is not generated Perl prints a warning, which proxmoxer takes for a failure.
Proxmox starts hookscripts with umask 022 and LC_ALL=C, and so do we start its tools.
"""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

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


_POLL_S = 0.005
# Children that were killed and have not ended: the kernel lets nobody go whose request is being served.
_left: list[int] = []


def attempt(work: Callable[[], object], *, patience_s: float) -> None:
    """Has a child do what may block for ever, such as a write to a cluster's file system.

    work: raises OSError where it fails. The child has none of our files, so that it keeps no lock of ours.
    Raises that OSError, or Late for one that is not done after patience_s: it was told to die, and is left
    alone. While it lives no other is started: who waited patience_s for its end is Late, too.
    """
    until = time.monotonic() + patience_s
    while _left:
        _left[:] = [pid for pid in _left if os.waitpid(pid, os.WNOHANG)[0] == 0]
        if _left and time.monotonic() > until:
            raise Late("a child that is still at it", patience_s)
        if _left:
            time.sleep(_POLL_S)
    pid = os.fork()
    if pid == 0:
        _work(work)
    until = time.monotonic() + patience_s
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            _left.append(pid)
            raise Late("a child", patience_s)
        time.sleep(_POLL_S)
    number = os.waitstatus_to_exitcode(ended[1])
    if number:
        number = number if number > 0 else errno.EINTR
        raise OSError(number, os.strerror(number))


def _work(work: Callable[[], object]) -> NoReturn:
    """The child's life. Its exit code is the error's number."""
    code = errno.EIO
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.umask(UMASK)
        work()
        code = 0
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os._exit(code)


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
