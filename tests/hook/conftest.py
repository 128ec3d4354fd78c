"""A sandbox whose VMs have the real hookscript, and what a test asks of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pxsched.sandbox.commandline import Accelerator
from pxsched.sandbox.sandbox import Result, Sandbox

CHECKOUT = Path(__file__).parents[2]
HOOK = CHECKOUT / "hooks/pxsched"
KILLED = Path(__file__).with_name("killed.py")
OURS = "local:snippets/pxsched"


@dataclass(frozen=True)
class Host:
    """The stand-in node with pxsched installed."""

    sandbox: Sandbox

    def create(self, vmid: int, **options: str | int) -> int:
        self.sandbox.qm("create", vmid, **{"memory": 32, "hookscript": OURS, **options})
        return vmid

    def start(self, vmid: int, **options: str | int) -> Result:
        return self.sandbox.qm("start", vmid, **options)

    def stop(self, vmid: int) -> Result:
        return self.sandbox.qm("stop", vmid)

    def started(self, vmid: int, **options: str | int) -> int:
        self.create(vmid, **options)
        self.start(vmid)
        return vmid

    def masks(self, vmid: int) -> list[str]:
        return self.sandbox.masks(vmid)

    def all_masks(self, vmid: int) -> dict[int, str]:
        return {tid: self.sandbox.mask(tid) for tid in self.sandbox.threads(vmid)}

    def pxsched(self, *words: str | int, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pxsched", "--root", self.sandbox.root, *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def hook(self, vmid: int | str, phase: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The script itself, as Proxmox would call it."""
        return subprocess.run(
            [HOOK, str(vmid), phase], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "PVE_MIGRATED_FROM": "",
                 "PXSCHED_ROOT": self.sandbox.root, **environment},
        )  # fmt: skip

    def killed_at(self, write: int, *words: str | int) -> bool:
        """Runs `hook VMID PHASE` or `pxsched WORD...`; says whether the kill came before its end."""
        command = [sys.executable, KILLED, str(write), *map(str, words)]
        environment = {**os.environ, "PXSCHED_ROOT": self.sandbox.root}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1, -signal.SIGKILL), done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode == -signal.SIGKILL

    def settings(self, text: str) -> None:
        path = Path(self.sandbox.root, "etc/pxsched/pxsched.toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def status(self) -> dict:
        return json.loads(self.pxsched("status", "--json").stdout)

    def leftovers(self) -> list[str]:
        """Files of ours that say something of VMs that are there; locks are never removed, and what was
        counted stays.
        """
        names = os.listdir(Path(self.sandbox.root, "run/pxsched"))
        kept = ("lock", "passes.json", "runs.json", "refusals.json", "notices.json")
        return sorted(name for name in names if not name.endswith(kept) and "settings" not in name)


@pytest.fixture
def host() -> Iterator[Host]:
    with Sandbox(accelerator=Accelerator.TCG, most_vcpus=8) as sandbox:
        sandbox.snippet("pxsched", HOOK)
        yield Host(sandbox)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], bool]:
    """Whether a condition comes true within twenty seconds."""

    def wait(condition: Callable[[], object]) -> bool:
        deadline = time.monotonic() + 20
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    return wait
