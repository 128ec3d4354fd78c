"""A stand-in node with real guests and the real hookscript, for the balancer's promises."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pxsched.ledger import file as ledger
from pxsched.node import claims
from pxsched.root import Root
from pxsched.sandbox.commandline import Accelerator
from pxsched.sandbox.sandbox import Sandbox
from pxsched.value import replace

CHECKOUT = Path(__file__).parents[2]


# What other work this machine does at the moment must not decide about these tests.
ALONE = (
    "from pxsched.host import cputime; cputime.idle_ns = lambda root: {};"
    "from pxsched.cli import entry; entry()"
)
WITH_OTHERS = "from pxsched.cli import entry; entry()"


@dataclass
class Host:
    """program: what a pass runs; ALONE unless a test is about the work of others."""

    sandbox: Sandbox
    program: str = ALONE

    @property
    def root(self) -> Root:
        return Root(self.sandbox.root)

    def start(self, vmid: int, **options) -> int:
        self.sandbox.qm("create", vmid, **{"memory": 32, "hookscript": "local:snippets/pxsched", **options})
        self.sandbox.qm("start", vmid)
        return vmid

    def busy(self, vmid: int, vcpus: int = 1, percent: int = 100) -> None:
        self.sandbox.guest(vmid).wait()
        for vcpu in range(vcpus):
            self.sandbox.guest(vmid).load(vcpu, percent)

    def settings(self, text: str) -> None:
        path = Path(self.sandbox.root, "etc/pxsched/pxsched.toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def tick(self, after_s: float = 0.0) -> str:
        """One pass as the timer makes it: a process of its own."""
        time.sleep(after_s)
        return self.pxsched("tick")

    def pxsched(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", self.program, "--root", self.sandbox.root, *words],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def put(self, vmid: int, cpus: set[int]) -> None:
        """Gives a VM a home by hand, as a crowded past would have."""
        with ledger.locked(self.root) as held:
            claim = held.claims[vmid]
            home = claims.moved_to(claim.placement, frozenset(cpus), claim.placement.nodes, "by hand")
            held.claims[vmid] = replace(claim, placement=home)
            ledger.save(self.root, held)

    def home(self, vmid: int) -> frozenset[int]:
        return ledger.peek(self.root).claims[vmid].placement.cpus

    def claims(self) -> dict:
        return ledger.peek(self.root).claims

    @contextmanager
    def watching(self, period_s: float):
        """`watch` in the background; yields the file it writes to."""
        said = Path(self.sandbox.root, "watch.out")
        with said.open("w") as file:
            words = ["--root", self.sandbox.root, "watch", f"--period={period_s}"]
            process = subprocess.Popen(
                [sys.executable, "-c", self.program, *words],
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                yield said
                assert process.poll() is None, said.read_text()
            finally:
                process.terminate()
                process.wait()

    def state(self) -> dict:
        return json.loads(Path(self.sandbox.root, "run/pxsched/balance.json").read_text())

    def ran_ns(self, vmid: int) -> int:
        """What the VM's vCPUs have run, by the kernel's count."""
        pid = self.sandbox.pid(vmid)
        return sum(
            int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0])
            for tid in self.sandbox.vcpus(vmid).values()
        )


def new_host():
    with Sandbox(accelerator=Accelerator.TCG, most_vcpus=8) as sandbox:
        sandbox.snippet("pxsched", CHECKOUT / "hooks/pxsched")
        yield Host(sandbox)


host = pytest.fixture(new_host, name="host")
shared_host = pytest.fixture(new_host, name="shared_host", scope="module")
