"""A stand-in node with real guests, shared by the tests of a module, and the commands as people type them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pxsched.ledger import file as ledgers
from pxsched.node import claims, trial
from pxsched.root import Root
from pxsched.sandbox.commandline import Accelerator
from pxsched.sandbox.sandbox import Sandbox
from pxsched.value import replace

CHECKOUT = Path(__file__).parents[2]
PXSCHED = [sys.executable, "-m", "pxsched"]


@dataclass
class Host:
    sandbox: Sandbox

    @property
    def root(self) -> Root:
        return Root(self.sandbox.root)

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(CHECKOUT), "PXSCHED_ROOT": self.sandbox.root}

    def vm(self, vmid: int, home: set[int], cores: int = 1, *, busy: bool = False) -> None:
        """A guest at home on these CPUs; busy: all its vCPUs burn."""
        options = {"memory": 32, "cores": cores, "hookscript": "local:snippets/pxsched"}
        self.sandbox.qm("create", vmid, **options)
        self.sandbox.qm("start", vmid)
        with ledgers.locked(self.root) as held:
            claim = held.claims[vmid]
            moved = claims.moved_to(claim.placement, frozenset(home), claim.placement.nodes, "by hand")
            held.claims[vmid] = replace(claim, placement=moved)
            ledgers.save(self.root, held)
        self.run("tick")
        if busy:
            self.sandbox.guest(vmid).wait()
            for vcpu in range(cores):
                self.sandbox.guest(vmid).load(vcpu, 100)

    def settings(self, text: str) -> None:
        path = Path(self.sandbox.root, "etc/pxsched/pxsched.toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *words: str, code: int = 0) -> str:
        line = [*PXSCHED, *map(str, words)]
        done = subprocess.run(line, env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([*PXSCHED, *words], env=self.environ, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def proof(self, *words: str) -> dict:
        (found,) = json.loads(self.run("prove", *words, "--json"))["proofs"]
        return found

    def state(self, vmid: int) -> tuple:
        """All that a proof might leave behind."""
        ledger = ledgers.peek(self.root)
        # A knob that is as it was, and as wanted, may be remembered or not.
        entries = ledger.journal.items()
        turned = {key: one.original for key, one in entries if one.original != one.wanted}
        claim = ledger.claims[vmid]
        return claim.placement, claim.policy, claim.aside, turned, tuple(self.sandbox.masks(vmid))

    def await_way(self, *ways: str) -> None:
        """Until a VM is in one of these ways."""
        self.await_that(lambda: (on := trial.load(self.root)) is not None and on.way in ways)

    def await_that(self, true: Callable[[], bool], patience_s: float = 30.0) -> None:
        until_s = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < until_s
            time.sleep(0.02)


@pytest.fixture
def host():
    with Sandbox(accelerator=Accelerator.TCG, most_vcpus=4) as sandbox:
        sandbox.snippet("pxsched", CHECKOUT / "hooks/pxsched")
        made = Host(sandbox)
        made.settings("[node]\nbalance_cpu = false\nbalance_memory = false\n")
        yield made
