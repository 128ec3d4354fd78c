"""What is asked of systemd: properties of running units, and reading its files again.

Rules: systemctl(1) set-property, systemd.resource-control(5) AllowedCPUs= and AllowedMemoryNodes=. systemd
owns the cgroups of its units and overwrites what others write there, so their cpusets are set through it.
Properties set at run time are drop-ins below /run, which take part in every later reload.
"""

import errno
import os
import time
from collections.abc import Sequence

from pxsched import lock, patience
from pxsched.root import Root

PATIENCE_S, START_S = 30.0, 5.0
_RELOAD = "run/pxsched/reload.lock"  # says when the last reload that came to its end began, ns after boot
PROGRAM, _RUN = "/usr/bin/systemctl", "/usr/bin/systemd-run"
NAME = "systemd"
# Where `set-property --runtime` writes its drop-ins: transient units (scopes) have a directory of their own.
_DROPIN_DIRS = ("run/systemd/system.control", "run/systemd/transient")


class NoSuchUnit(Exception):
    """systemd does not know the unit: it has ended, or never was."""


def present(root: Root) -> bool:
    """Whether the systemd that runs is the one of this root: a sandbox must never touch its host's."""
    try:
        return os.path.samefile(root.path("run/systemd/system"), "/run/systemd/system")
    except OSError:
        return False


def set_property(root: Root, unit: str, name: str, value: str) -> None:
    """Sets one property of a loaded unit until the next boot; an empty value takes it away.

    Raises NoSuchUnit, and OSError with systemd's own words.
    """
    call(root, "set-property", "--runtime", "--", unit, f"{name}={value}")


def runtime_property(root: Root, unit: str, name: str) -> str:
    """The CPU or node list that `set_property` last set, which counts for a unit without a cgroup, too."""
    path = drop_in(root, unit, name)
    lines = (root.read(path) or "").splitlines() if path else []
    values = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
    return values[-1].replace(" ", ",") if values else ""


def forget_property(root: Root, unit: str, name: str) -> None:
    """Takes a property away, and with it the file that would go on to say that it is empty: a reload, which
    takes long, would find nothing new. What the property did to the unit's cgroup stays as long as others
    need the same controller, which is the caller's to clear. Raises NoSuchUnit and OSError.
    """
    set_property(root, unit, name, "")
    path = drop_in(root, unit, name)
    if path is None:
        return
    os.unlink(root.path(path))
    try:
        os.rmdir(os.path.dirname(root.path(path)))
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # other properties keep theirs
            raise


def reload(root: Root) -> None:
    """Has all unit files read again, as they are now: by a reload that begins from now on, which need not be
    our own. A dozen VMs that start together share two. Raises OSError, UserError.
    """
    asked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with lock.held(root, _RELOAD, patience_s=patience.left(PATIENCE_S)):
        began = root.read(_RELOAD) or ""
        if began.isdecimal() and len(began) < 20 and int(began) > asked_ns:
            return
        begins_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        call(root, "daemon-reload")
        with open(root.path(_RELOAD), "w") as stream:
            stream.write(str(begins_ns))


def drop_in(root: Root, unit: str, name: str) -> str | None:
    """The file in which `set_property` keeps a property of the unit, if there is one."""
    candidates = (f"{directory}/{unit}.d/50-{name}.conf" for directory in _DROPIN_DIRS)
    return next((path for path in candidates if root.exists(path)), None)


def start(root: Root, argv: Sequence[str], *, stdin: bytes, description: str, most_s: float) -> None:
    """Has systemd run a program in a unit of its own, and does not wait for it. stdin: what it reads; a few
    ten KiB at most, as it is handed over as an argument. most_s: how long it may take. Raises OSError.

    Rules: systemd-run(1); systemd.exec(5) StandardInputData=.
    """
    import base64

    properties = (
        "StandardInput=data",
        f"StandardInputData={base64.b64encode(stdin).decode()}",
        "ExitType=cgroup",  # it may leave its work to a child
        f"RuntimeMaxSec={most_s:g}",
    )
    words = [word for one in properties for word in ("--property", one)]
    run = [_RUN, "--no-block", "--collect", f"--description={description}", *words, "--", *argv]
    try:
        with patience.until(time.monotonic() + START_S):
            _run(root, run)
    except NoSuchUnit as error:
        raise OSError(errno.EIO, str(error)) from error


def call(root: Root, *arguments: str) -> None:
    """Runs systemctl. Raises NoSuchUnit or OSError."""
    _run(root, [PROGRAM, *arguments])


def _run(root: Root, words: Sequence[str]) -> None:
    """Runs one of systemd's programs. Raises NoSuchUnit or OSError."""
    if not present(root):
        raise OSError(errno.EOPNOTSUPP, "systemd is not what runs this system")
    from pxsched import child

    argv = [words[0], "--quiet", "--no-ask-password", *words[1:]]
    patience_s = patience.left(PATIENCE_S)
    try:
        done = child.run(argv, patience_s=patience_s, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    except child.Late:
        raise OSError(errno.ETIMEDOUT, f"systemd did not answer within {patience_s:.1f} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        if "not found" in said or "not loaded" in said:
            raise NoSuchUnit(said)
        raise OSError(errno.EIO, said or f"{' '.join(words[:2])} failed")
