"""A sandbox per test, and a hookscript that writes down how it was called."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pxsched.sandbox import linux
from pxsched.sandbox.commandline import Accelerator
from pxsched.sandbox.sandbox import Sandbox

RECORDING_HOOK = """\
#!/usr/bin/python3 -I
import fcntl, json, os, sys
vmid, phase = sys.argv[1:3]
root = os.environ["PXSCHED_ROOT"]
try:
    lock = os.open(f"{root}/var/lock/qemu-server/lock-{vmid}.conf", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    locked = False
except BlockingIOError:
    locked = True
call = {
    "arguments": sys.argv, "phase": phase, "environment": dict(os.environ), "locked": locked,
    "input": sys.stdin.read(), "running": os.path.exists(f"{root}/run/qemu-server/{vmid}.pid"),
}
try:
    call["config"] = open(f"{root}/etc/pve/qemu-server/{vmid}.conf").read()
except FileNotFoundError:
    call["config"] = None
with open(f"{root}/calls", "a") as file:
    file.write(json.dumps(call) + "\\n")
print("hook says", phase)
if os.path.exists(f"{root}/fail-{phase}"):
    sys.exit(3)
"""


@dataclass(frozen=True)
class Recorder:
    """What the recording hook has seen."""

    root: Path

    @property
    def calls(self) -> list[dict]:
        path = self.root / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def phases(self) -> list[str]:
        return [call["phase"] for call in self.calls]

    def fail_in(self, phase: str) -> None:
        (self.root / f"fail-{phase}").touch()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(accelerator=Accelerator.TCG, most_vcpus=8) as sandbox:
        sandbox.snippet("recorder", RECORDING_HOOK)
        yield sandbox


@pytest.fixture
def recorder(sandbox: Sandbox) -> Recorder:
    return Recorder(Path(sandbox.root))


@pytest.fixture(scope="session")
def kernel() -> None:
    """Skips where a Linux guest's kernel cannot be had."""
    from pxsched.errors import UserError

    try:
        linux.files()
    except UserError as error:
        pytest.skip(f"no kernel for a Linux guest: {error}")


def eventually(condition: Callable[[], object], *, within_s: float = 10) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def create(sandbox: Sandbox, vmid: int = 100, **options: str | int) -> int:
    """A small VM with the recording hook."""
    sandbox.qm("create", vmid, **{"memory": 32, "hookscript": "local:snippets/recorder", **options})
    return vmid
