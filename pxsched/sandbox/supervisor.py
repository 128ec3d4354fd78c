"""The process that a sandbox's guests belong to: it runs `qm` tasks, hears QEMU's events, and ends
everything.

Two processes, each of which outlives the other long enough to clean up:
- the supervisor adopts the daemonised QEMUs (PR_SET_CHILD_SUBREAPER, so that none is left to a pid 1 that
  reaps nothing) and does what pvedaemon (a forked worker a task) and qmeventd (`quit` after a guest's own
  power-off, `qm cleanup` when QEMU is gone) do on a Proxmox node;
- its guardian, the parent, inherits and kills whatever is left should the supervisor be killed.

The sandbox ends when its owner closes standard input, or, without an owner (`--linger`), when no guest has
run for a while, and always when its directory is deleted.
"""

import ctypes
import json
import os
import re
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import psutil

from pxsched.errors import UserError
from pxsched.output import say
from pxsched.sandbox import lifecycle, node, qm

END_OF_OUTPUT = b"\0"
"""Ends a task's output; its exit code follows in decimal."""
READY = b"ready\n"
END = "end"
"""The one task that is no `qm` command."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINGER_S = 5
_KILL_S = 10
_GUEST_STOP_S = 3


def main() -> None:
    """Arguments: the sandbox's directory, how many seconds its end may take, and perhaps `--linger` (there is
    no owner) and `--temporary` (the directory is deleted in the end).
    """
    os.environ.pop("PYTHONPATH", None)
    with suppress(PermissionError):  # already leads a session
        os.setsid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    child = os.fork()
    if child:
        _guard(child)
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != guardian:
        return
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    home, patience_s, *more = sys.argv[1:]
    Supervisor(
        node.find(Path(home)),
        patience_s=float(patience_s),
        linger="--linger" in more,
        temporary="--temporary" in more,
    ).run()


def _guard(supervisor: int) -> None:
    """Wait for the supervisor's end, then end all that it left to us."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: os.kill(supervisor, signal.SIGTERM))
    os.close(0)
    os.close(1)
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0] != supervisor:
            pass
    _kill_children()


class Supervisor:
    """The loop over tasks, QEMU's events, and reasons to end."""

    def __init__(self, home: node.Node, *, patience_s: float, linger: bool, temporary: bool) -> None:
        self._node = home
        self._patience_s = patience_s
        self._linger = linger
        self._temporary = temporary
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, str] = {}
        self._guests: dict[socket.socket, int] = {}
        self._idle_since = time.monotonic()
        self._ending = False

    def run(self) -> None:
        self._watch_signals()
        control = self._listen(self._node.control)
        events = self._listen(self._node.events)
        self._selector.register(control, selectors.EVENT_READ, self._accept_task)
        self._selector.register(events, selectors.EVENT_READ, self._accept_guest)
        if not self._linger:
            self._selector.register(sys.stdin.buffer, selectors.EVENT_READ, self._owner_spoke)
        os.write(1, READY)
        os.close(1)
        os.open(os.devnull, os.O_WRONLY)
        while not self._done():
            self._turn(1)
        control.close()
        self._end()
        if self._temporary and node.is_sandbox(Path(self._node.base)):
            node.remove(Path(self._node.base).resolve())
        for path in (self._node.events, self._node.control):
            path.unlink(missing_ok=True)

    def _turn(self, timeout_s: float) -> None:
        for key, _mask in self._selector.select(timeout_s):
            key.data(key.fileobj)
        self._reap()

    def _done(self) -> bool:
        if self._ending or not node.is_sandbox(Path(self._node.base)):
            return True
        if self._workers or self._guests:
            self._idle_since = time.monotonic()
        return self._linger and time.monotonic() - self._idle_since > _LINGER_S

    def _watch_signals(self) -> None:
        """Signals wake the loop through a pipe; children's ends need no more than that."""
        ours, signals = socket.socketpair()
        ours.setblocking(False)
        signals.setblocking(False)
        signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
        self._signals = signals
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        self._selector.register(ours, selectors.EVENT_READ, lambda _file: ours.recv(4096))

    def _told_to_end(self, _number: int, _frame: object) -> None:
        self._ending = True

    def _owner_spoke(self, file: object) -> None:
        if not os.read(0, 4096):
            self._selector.unregister(sys.stdin.buffer)
            self._ending = True

    def _listen(self, path: Path) -> socket.socket:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
        return listener

    def _accept_task(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(5)
        with connection, suppress(OSError, ValueError):
            words = [str(word) for word in json.loads(connection.makefile("rb").readline(1 << 20))]
            if words == [END]:
                self._ending = True
            elif words:
                self._work(words, connection)

    def _work(self, arguments: list[str], connection: socket.socket | None) -> None:
        """Fork a worker for one task, as pvedaemon does."""
        pid = os.fork()
        if pid:
            self._workers[pid] = " ".join(arguments)
            return
        code = 255
        try:
            self._become_worker(connection)
            code = _task(self._node, arguments)
            sys.stdout.flush()
            if connection:
                connection.sendall(END_OF_OUTPUT + str(code).encode())
        except Exception:  # noqa: BLE001 - a worker's entry point
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
        finally:
            os._exit(code)

    def _become_worker(self, connection: socket.socket | None) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(connection.fileno() if connection else null, 1)
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        if connection:
            connection.settimeout(None)

    def _accept_guest(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        pid, _uid, _gid = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        vmid = _vmid_of(pid)
        if vmid is None:
            connection.close()
            return
        connection.setblocking(False)
        self._guests[connection] = vmid
        self._selector.register(connection, selectors.EVENT_READ, self._guest_spoke)

    def _guest_spoke(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(65536)
            if b'"QMP"' in data:
                connection.sendall(b'{"execute": "qmp_capabilities"}\n')
            # With -no-shutdown QEMU waits after the guest has powered itself off.
            if b'"event": "SHUTDOWN"' in data:
                connection.sendall(b'{"execute": "quit"}\n')
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()
            self._work(["cleanup", str(self._guests.pop(connection))], None)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._workers.pop(pid, None)

    def _end(self) -> None:
        """Stop every guest properly, so that its hooks run; then kill what is left, post-stop included."""
        deadline = time.monotonic() + self._patience_s
        for vmid in set(self._guests.values()):
            self._work(["stop", str(vmid), "--timeout", str(_GUEST_STOP_S)], None)
        while self._workers and time.monotonic() < deadline:
            self._turn(0.05)
        for child in psutil.Process().children():
            if child.pid not in self._workers:
                _kill(child)
        while (self._workers or self._guests) and time.monotonic() < deadline:
            self._turn(0.05)
        _kill_children()


def _task(home: node.Node, arguments: list[str]) -> int:
    try:
        if arguments[0] == "cleanup":
            lifecycle.cleanup(home, int(arguments[1]))
        else:
            qm.run(home, arguments)
    except (UserError, OSError) as error:
        say(str(error))
        return 1
    return 0


def _vmid_of(pid: int) -> int | None:
    """The VM of a QEMU process, by the pid file on its command line, as qmeventd finds it."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    match = re.search(rb"\0-pidfile\0[^\0]*/var/run/qemu-server/([1-9]\d{2,8})\.pid\0", arguments)
    return int(match[1]) if match else None


def _kill_children() -> None:
    """Kill every child, and those that fall to us by that, until there is none."""
    deadline = time.monotonic() + _KILL_S
    while time.monotonic() < deadline and (children := psutil.Process().children()):
        for child in children:
            _kill(child)
        psutil.wait_procs(children, timeout=0.1)


def _kill(child: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        child.kill()


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
