"""Calling a VM's hookscript, and holding the VM's lock around it.

Rules: PVE::GuestHelpers::exec_hookscript (arguments, environment, what a failure means) and
PVE::AbstractConfig::lock_config (flock on lock-VMID.conf, ten seconds of patience).
"""

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum

from pxsched.errors import UserError
from pxsched.output import say
from pxsched.sandbox import options
from pxsched.sandbox.node import Node


class Phase(StrEnum):
    PRE_START = "pre-start"
    POST_START = "post-start"
    PRE_STOP = "pre-stop"
    POST_STOP = "post-stop"


def run(node: Node, vmid: int, phase: Phase, settings: Mapping[str, str], *, migrated_from: str = "") -> None:
    """Run the VM's hookscript if it has one. A failing pre-start raises UserError; any other only warns.

    Its output is read to the end: a child of it that keeps standard output open keeps the VM waiting.
    """
    volume = settings.get("hookscript")
    if not volume:
        return
    try:
        _call(node, vmid, phase, volume, migrated_from)
    except UserError as error:
        if phase is Phase.PRE_START:
            raise
        say(f"WARN: hookscript error for {vmid} on {phase}: {error}")


def _call(node: Node, vmid: int, phase: Phase, volume: str, migrated_from: str) -> None:
    path = options.script(node, volume)
    try:
        # An input that is a pipe at its end, not the null device.
        done = subprocess.run(
            [path, str(vmid), phase],
            input=b"",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(node, phase, migrated_from),
            check=False,
        )
    except OSError as error:
        raise UserError(f"hookscript error: {path}: {error.strerror}") from error
    if done.stdout:
        say(*done.stdout.decode("utf-8", "replace").splitlines())
    if done.returncode < 0:
        raise UserError(
            f"hookscript error: command '{path} {vmid} {phase}' failed: got signal {-done.returncode}"
        )
    if done.returncode > 0:
        raise UserError(
            f"hookscript error: command '{path} {vmid} {phase}' failed: exit code {done.returncode}"
        )


def _environment(node: Node, phase: Phase, migrated_from: str) -> dict[str, str]:
    environment = {
        **os.environ,
        "PATH": "/sbin:/bin:/usr/sbin:/usr/bin",
        "LC_ALL": "C",
        "LVM_SUPPRESS_FD_WARNINGS": "1",
        "PXSCHED_ROOT": node.base,
    }
    environment.pop("PVE_MIGRATED_FROM", None)
    if phase in (Phase.PRE_START, Phase.POST_START):
        environment["PVE_MIGRATED_FROM"] = migrated_from
    return environment


@contextmanager
def locked(node: Node, vmid: int, *, timeout_s: float = 10) -> Iterator[None]:
    """Hold the VM's lock. Raises UserError when somebody else does not let go of it."""
    path = node.lock(vmid)
    deadline = time.monotonic() + timeout_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"can't lock file '{path}' - got timeout") from None
                time.sleep(0.02)
        yield
