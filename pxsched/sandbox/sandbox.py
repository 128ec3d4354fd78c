"""A stand-in Proxmox node in a directory: its guests live as long as it does, and no longer.

with Sandbox() as sandbox:
    sandbox.qm("create", 100, cores=2, affinity="1,0")
    sandbox.qm("start", 100)
    print(sandbox.masks(100))
"""

import json
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pxsched import material
from pxsched.errors import UserError
from pxsched.guest import process
from pxsched.root import Root
from pxsched.sandbox import boot, lifecycle, node, supervisor
from pxsched.sandbox.commandline import Accelerator
from pxsched.sandbox.guest import Guest
from pxsched.sandbox.node import Node
from pxsched.value import Value

_READY_S = 20
PATIENCE_S = 30.0
_END_S = 60
_TASK_S = 180


class QmError(UserError):
    """A `qm` command failed; `output` is all that it said, hooks included."""

    def __init__(self, command: str, output: str) -> None:
        super().__init__(f"{command}: {output.strip()}")
        self.output = output


class Result(Value):
    """What a `qm` command said, and its exit code."""

    code: int
    output: str


class Sandbox:
    """A node, and the owner of everything that runs on it.

    directory: laid out as a node if it is not one yet, kept at the end; None for one that is deleted then.
    accelerator: None for what the machine can do.
    most_vcpus: how many CPUs the node claims to have (a VM may not have more); None for what it has.
    environment: added to that of the hooks.
    patience_s: how long hooks may take when the sandbox ends.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        accelerator: Accelerator | None = None,
        most_vcpus: int | None = None,
        environment: Mapping[str, str] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._temporary = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="pxsched-"))
        self.node = node.create(self.directory)
        boot.configure(self.node, accelerator=accelerator, most_vcpus=most_vcpus)
        flags = ("--temporary",) if self._temporary else ()
        self._supervisor = launch(self.node, *flags, environment=environment, patience_s=patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def root(self) -> str:
        """The path for `--root` and PXSCHED_ROOT."""
        return self.node.base

    @property
    def supervisor_pid(self) -> int:
        """The process whose end ends all guests."""
        return self._supervisor.pid

    def qm(self, *arguments: str | int, check: bool = True, **options: str | int) -> Result:
        """One `qm` command: qm("create", 100, cores=2). Raises QmError unless check is False."""
        words = [str(argument) for argument in arguments]
        words += [f"--{name}={value}" for name, value in options.items()]
        result = request(self.node, words)
        if check and result.code:
            raise QmError(f"qm {' '.join(words)}", result.output)
        return result

    def guest(self, vmid: int) -> Guest:
        """The system inside the VM."""
        return Guest(self.node, vmid)

    def snippet(self, name: str, source: Path | str) -> None:
        """A hookscript for `--hookscript local:snippets/NAME`: a link to a file, or a text."""
        path = self.node.path(f"var/lib/vz/snippets/{name}")
        path.unlink(missing_ok=True)
        if isinstance(source, Path):
            path.symlink_to(source.absolute())
        else:
            path.write_text(source)
            path.chmod(0o755)

    def pid(self, vmid: int) -> int | None:
        """The VM's QEMU process; None when it does not run."""
        found = lifecycle.find(self.node, vmid)
        return found.pid if found else None

    def threads(self, vmid: int) -> dict[int, str]:
        """The names of QEMU's threads by id."""
        pid = self.pid(vmid)
        root = Root(self.root)
        tids = [int(name) for name in root.list(f"proc/{pid}/task")] if pid else []
        return {tid: root.read(f"proc/{pid}/task/{tid}/comm") or "" for tid in tids}

    def vcpus(self, vmid: int) -> dict[int, int]:
        """Thread ids by vCPU index."""
        found = {}
        for tid, name in self.threads(vmid).items():
            if match := re.fullmatch(r"CPU (\d+)/(?:KVM|TCG)", name):
                found[int(match[1])] = tid
        return dict(sorted(found.items()))

    def mask(self, tid: int) -> str:
        """The CPUs a thread may use, as the kernel says: "0-1"; empty once it is gone."""
        return process.allowed(Root(self.root), tid) or ""

    def masks(self, vmid: int) -> list[str]:
        """The mask of each vCPU's thread, by vCPU index."""
        return [self.mask(tid) for tid in self.vcpus(vmid).values()]

    def close(self) -> None:
        """End all guests, hooks included, and the sandbox."""
        if self._supervisor.stdin:
            self._supervisor.stdin.close()
        try:
            self._supervisor.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        if self._temporary and node.is_sandbox(self.directory):  # it did not get that far itself
            node.remove(self.directory)


def launch(
    home: Node,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    patience_s: float = PATIENCE_S,
) -> subprocess.Popen[bytes]:
    """Start the supervisor, with flags of its own, and wait until it listens."""
    command = material.again(home.base, str(patience_s), module="pxsched.sandbox.supervisor")
    with home.path("sandbox/supervisor.log").open("ab") as log:
        started = subprocess.Popen(
            [*command, *flags],
            stdin=subprocess.DEVNULL if "--linger" in flags else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**material.environment(), **(environment or {})},
            cwd="/",
        )
    assert started.stdout
    with started.stdout:
        if started.stdout.readline() != supervisor.READY:
            started.kill()
            started.wait()
            said = home.path("sandbox/supervisor.log").read_text("utf-8", "replace")
            raise UserError(f"the sandbox's supervisor does not start: {said.strip()[-500:]}")
    return started


class Nobody(UserError):
    """No supervisor takes a task."""


def do(home: Node, words: list[str]) -> Result:
    """Have a supervisor do a `qm` command; one that ends when it has nothing to do is started if need be.

    Raises UserError.
    """
    try:
        if listening(home):
            return request(home, words)
    except Nobody:  # its time was up just now
        pass
    launch(home, "--linger")
    return request(home, words)


def request(home: Node, words: list[str]) -> Result:
    """Have the supervisor do a `qm` command. Raises UserError, of which Nobody is one."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TASK_S)
        try:
            connection.connect(str(home.control))
            connection.sendall(json.dumps(words).encode() + b"\n")
            data = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            gone = isinstance(error, ConnectionError | FileNotFoundError)
            raise (Nobody if gone else UserError)(f"no supervisor answers in {home.base}: {error}") from error
    output, _, code = data.rpartition(supervisor.END_OF_OUTPUT)
    if not code.isdigit():
        raise UserError(f"the task {' '.join(words)!r} was cut short: {data.decode('utf-8', 'replace')}")
    return Result(int(code), output.decode("utf-8", "replace"))


def listening(home: Node) -> bool:
    """Whether the sandbox has a supervisor."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(home.control)) == 0


def destroy(directory: Path) -> None:
    """End a sandbox and everything in it, and delete its directory."""
    home = node.find(directory)
    if listening(home):
        request_end(home)
    node.remove(directory)


def request_end(home: Node) -> None:
    """Have the supervisor end everything, and wait for it. Raises UserError when that takes too long."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(home.control))
        connection.sendall(json.dumps([supervisor.END]).encode() + b"\n")
    deadline = time.monotonic() + _END_S
    while home.control.exists():  # the last thing it takes away
        if time.monotonic() > deadline:
            raise UserError(f"the sandbox in {home.base} does not end")
        time.sleep(0.02)
