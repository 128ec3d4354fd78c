"""The irqbalance daemon, by its own interface: which interrupts and CPUs it keeps its hands off.

Rules, found by asking irqbalance 1.9 (Debian 12, 13): one request a connection, sent with the sender's
credentials. `setup` answers `SLEEP seconds {IRQ n LOAD .. DIFF .. CLASS ..} BANNED cpumask`.
`settings ban irqs n ...` (or NONE) replaces the whole list at once; `settings cpus list` (or NULL for the
configured ones) holds from its next scan. A request is read into 500 bytes: of a longer one
the rest is lost, the number at the cut becomes another number, and the connection is reset.

It dies of SIGPIPE when it answers somebody who has left, and takes a connection without a request for the one
before. So it is asked only while it waits for events, and no connection is closed before its answer.
"""

import errno
import os
import re
import socket
import struct
import time
from collections.abc import Collection, Iterator

from pxsched import patience
from pxsched.host import cpulist
from pxsched.root import Root
from pxsched.value import Value

DIR = "run/irqbalance"
_GREETING = "settings nothing-at-all"  # a request without meaning, and without answer
MAX_REQUEST_BYTES = 499
PATIENCE_S = 1.0
# A daemon that was silent once is left alone that long: there may be a hundred requests in a row.
DEAF_S = 5.0
_BAN = "settings ban irqs "
_SOCKET = re.compile(r"irqbalance(\d{1,10})\.sock", re.ASCII)
# irqbalance without its directory binds an abstract socket; releases differ in its name.
_NAMELESS = "\0" * 108
_SUN_PATH = 100


class Daemon(Value):
    """One running irqbalance. start_ticks: tells it from a later one with the same pid; a restarted daemon
    has forgotten all bans. address: its socket below the root, or an abstract one's name from its NUL on.
    """

    pid: int
    start_ticks: int
    address: str


class Setup(Value):
    """What it says of itself. irqs: banned by the command line and by us; cpus: banned CPUs, as a mask."""

    interval_s: int
    irqs: tuple[int, ...]
    cpus: str

    @property
    def room_bytes(self) -> int:
        """What is left of a request that names all banned interrupts."""
        return MAX_REQUEST_BYTES - len(_ban_request(self.irqs))


class Running(Value):
    """A daemon as a pass saw it. setup: None when it did not answer."""

    daemon: Daemon
    setup: Setup | None = None


_deaf_until: dict[Daemon, float] = {}
_unanswered: list[socket.socket] = []
_asked_cpus: dict[Daemon, tuple[str, float]] = {}
_said: dict[Daemon, Setup] = {}


def find(root: Root) -> Daemon | None:
    """The running irqbalance that can be spoken to."""
    for address in _addresses(root):
        match = _SOCKET.search(address)
        pid = int(match[1]) if match else _listener(root, address)
        start_ticks = start_of(root, pid)
        if start_ticks is not None:
            return Daemon(pid, start_ticks, address)
    return None


def look(root: Root) -> Running | None:
    """The running daemon and what it says; None when there is none."""
    daemon = find(root)
    if daemon is None:
        return None
    try:
        return Running(daemon, setup(root, daemon))
    except OSError:
        return Running(daemon)


def start_of(root: Root, pid: int) -> int | None:
    """Field 22 of proc(5)'s stat, when the process is an irqbalance of root's."""
    head, _, tail = (root.read(f"proc/{pid}/stat") or "").rpartition(")")
    words = tail.split()
    if head.partition("(")[2] != "irqbalance" or len(words) < 20 or words[0] in "ZX":
        return None
    try:
        # Anybody may take the name, and an abstract socket's.
        return int(words[19]) if os.stat(root.path(f"proc/{pid}")).st_uid == 0 else None
    except OSError:
        return None


def setup(root: Root, daemon: Daemon) -> Setup:
    """Raises OSError when it does not answer, or not in its form."""
    _said.clear()  # of one that has ended, too
    answer = _ask(root, daemon, "setup")
    match = re.fullmatch(r"SLEEP (\d+) (.*)BANNED ([0-9a-f,]+)", answer, re.ASCII)
    if match is None:
        raise OSError(errno.EPROTO, f"irqbalance said {answer[:40]!r}")
    irqs = tuple(int(number) for number in re.findall(r"IRQ (\d+) ", match[2]))
    asked, until = _asked_cpus.get(daemon, ("", 0.0))
    _said[daemon] = Setup(int(match[1]), irqs, asked if time.monotonic() < until else match[3])
    return _said[daemon]


def known(root: Root, pid: int, start_ticks: int) -> Setup | None:
    """What that run of the daemon said when this process last asked; None when it did not answer."""
    if start_of(root, pid) != start_ticks:
        return None
    return next((said for daemon, said in _said.items() if daemon.pid == pid), None)


def ban(root: Root, daemon: Daemon, irqs: Collection[int]) -> None:
    """Replaces its list of banned interrupts, and looks whether it has taken them as meant.

    Raises OSError: EMSGSIZE when there are too many for one request.
    """
    request = _ban_request(irqs)
    if len(request) > MAX_REQUEST_BYTES:
        raise OSError(errno.EMSGSIZE, "irqbalance takes no longer list of interrupts")
    before = setup(root, daemon).irqs
    try:
        _ask(root, daemon, request)
    except ConnectionResetError:
        pass  # it read a part of the request only
    if set(setup(root, daemon).irqs) != set(irqs):
        # Another release with a smaller buffer: what it made of the list may name innocent interrupts.
        _ask(root, daemon, _ban_request(before))
        raise OSError(errno.EPROTO, "irqbalance did not take the list")


def ban_cpus(root: Root, daemon: Daemon, mask: str) -> None:
    """Keeps it off these CPUs from its next scan on; `setup` tells what was asked until then."""
    cpus = cpulist.parse_mask(mask)
    request = f"settings cpus {cpulist.format(cpus) or 'NULL'}"
    if len(request) > MAX_REQUEST_BYTES:
        raise OSError(errno.EMSGSIZE, "irqbalance takes no longer list of CPUs")
    interval_s = setup(root, daemon).interval_s
    _ask(root, daemon, request)
    _asked_cpus[daemon] = (mask, time.monotonic() + interval_s + 1)
    setup(root, daemon)


def _ban_request(irqs: Collection[int]) -> str:
    return _BAN + (" ".join(str(irq) for irq in irqs) or "NONE")


def _addresses(root: Root) -> Iterator[str]:
    for name in root.list(DIR):
        if _SOCKET.fullmatch(name):
            yield f"{DIR}/{name}"
    if not root.live:
        return  # abstract sockets belong to the running kernel
    for line in (root.read("proc/net/unix") or "").splitlines():
        name = line.split()[-1]
        if name == "@" * len(_NAMELESS):
            yield _NAMELESS
        elif name.startswith("@") and _SOCKET.fullmatch(name[1:]):
            yield f"\0{name[1:]}"


def _listener(root: Root, address: str) -> int:
    """The pid behind a socket whose name does not tell it; 0 for one that is not root's."""
    try:
        with _connect(root, address) as connection:
            _send(connection, _GREETING)
            return _peer(connection)[0]
    except OSError:
        return 0


def _connect(root: Root, address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory, ready = None, False
    try:
        connection.settimeout(PATIENCE_S)
        path = address if address.startswith("\0") else root.path(address)
        if not path.startswith("\0") and len(os.fsencode(path)) > _SUN_PATH:
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
        connection.connect(path.encode())
        if _peer(connection)[1] != 0:
            raise OSError(errno.EACCES, "an irqbalance socket that is not root's")
        ready = True
    finally:
        if not ready:
            connection.close()
        if directory is not None:
            os.close(directory)
    return connection


def _peer(connection: socket.socket) -> tuple[int, int]:
    """pid and uid of the process that listens: anybody may take an abstract socket's name."""
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _ask(root: Root, daemon: Daemon, request: str) -> str:
    """One request and its answer. Raises OSError; after one TimeoutError at once again, for a while."""
    deadline = time.monotonic() + patience.left(PATIENCE_S)
    late = TimeoutError(errno.ETIMEDOUT, "irqbalance does not answer")
    if time.monotonic() < _deaf_until.get(daemon, 0.0):
        raise late
    if not _wait_until_idle(root, daemon, deadline):
        _deaf_until[daemon] = time.monotonic() + DEAF_S
        raise late
    connection = _connect(root, daemon.address)
    owed = False
    try:
        _send(connection, request)
        return _receive(connection, deadline)
    except TimeoutError:
        _deaf_until[daemon] = time.monotonic() + DEAF_S
        _unanswered.append(connection)  # closing it now would kill the daemon later
        owed = True
        raise late from None
    finally:
        if not owed:
            connection.close()


def _wait_until_idle(root: Root, daemon: Daemon, deadline: float) -> bool:
    """Whether the daemon sleeps in poll(2), soon. While it scans, or is stopped, it answers nobody."""
    while time.monotonic() < deadline:
        if start_of(root, daemon.pid) != daemon.start_ticks:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "that irqbalance is no more")
        place = root.read(f"proc/{daemon.pid}/wchan") or "0"
        if "poll" in place:
            return True
        # Kernels without symbols say 0; then sleeping has to be enough.
        if place == "0" and re.search(r"\) S ", root.read(f"proc/{daemon.pid}/stat") or ""):
            return True
        time.sleep(0.0005)
    return False


def _send(connection: socket.socket, request: str) -> None:
    credentials = struct.pack("3i", os.getpid(), os.getuid(), os.getgid())
    connection.sendmsg([request.encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])


def _receive(connection: socket.socket, deadline: float) -> str:
    answer = b""
    while len(answer) < 1 << 16:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(4096)
        if not chunk:
            break
        answer += chunk
    return answer.decode("ascii", "replace").strip("\0 ")
