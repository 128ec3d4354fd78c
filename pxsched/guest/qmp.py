"""The QEMU Machine Protocol, as briefly as its one-client socket demands: connect, a few commands, close.

Rules: QEMU docs/interop/qmp-spec; Proxmox shares the socket (pvestatd asks every ten seconds), so a second
client waits for its greeting until the first leaves. QEMU may be in a guest's hands: every answer is bounded
in size and time, and nothing in it is believed without a check.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TypeAlias

from pxsched import stored
from pxsched.guest.process import RUN_DIR
from pxsched.root import Root
from pxsched.stored import Damaged

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_LINE_BYTES = 1 << 20
MAX_COMMANDS = 3
_SUN_PATH = 100  # sockaddr_un.sun_path holds 108 bytes


class QmpError(Exception):
    """Talking to QEMU failed."""


class QmpBusy(QmpError):
    """No greeting in time: another client is being served, or QEMU is stuck."""


class QmpGone(QmpError):
    """There is no socket, or QEMU closed it."""


class QmpProtocol(QmpError):
    """The peer said something that is not QMP."""


class QmpRefused(QmpError):
    """QEMU answered with an error. error_class: QMP's name of it, such as DeviceNotActive."""

    def __init__(self, error_class: str, description: str) -> None:
        super().__init__(f"{error_class}: {description}")
        self.error_class = error_class


class Qmp:
    """One short conversation with one VM's QEMU, all of it within `patience_s`.

    with Qmp(root, 100, patience_s=1.0) as qmp:
        vcpus = qmp.execute("query-cpus-fast")

    Raises QmpBusy, QmpGone or QmpProtocol on entering.
    """

    def __init__(self, root: Root, vmid: int, *, patience_s: float) -> None:
        self._directory = root.path(RUN_DIR)
        self._name = f"{int(vmid)}.qmp"
        self._deadline = time.monotonic() + patience_s
        self._buffer = b""
        self._commands = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        ready = False
        try:
            self._connect()
            if "QMP" not in self._receive(QmpBusy("no greeting from QEMU: another client is being served")):
                raise QmpProtocol("the greeting is not QMP's")
            self._call("qmp_capabilities", None)
            ready = True
        finally:
            if not ready:
                self._socket.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def execute(self, command: str, arguments: Mapping[str, Json] | None = None) -> Json:
        """Runs one command and gives what it returns. Raises QmpError's children.

        At most three a conversation: Proxmox waits for the socket meanwhile.
        """
        self._commands += 1
        assert self._commands <= MAX_COMMANDS, "QMP is shared: at most three commands a conversation"
        return self._call(command, arguments)

    def _connect(self) -> None:
        path = os.path.join(self._directory, self._name)
        directory = None
        try:
            if len(os.fsencode(path)) > _SUN_PATH:
                directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                path = f"/proc/self/fd/{directory}/{self._name}"
            self._socket.settimeout(self._left(QmpBusy("QEMU does not accept the connection")))
            self._socket.connect(path)
        except TimeoutError:
            raise QmpBusy("QEMU does not accept the connection") from None
        except BlockingIOError:
            raise QmpBusy("QEMU's queue of connections is full") from None
        except OSError as error:
            raise QmpGone(f"no QMP socket: {error.strerror}") from error
        finally:
            if directory is not None:
                os.close(directory)

    def _call(self, command: str, arguments: Mapping[str, Json] | None) -> Json:
        late = QmpBusy(f"no answer to {command} in time")
        request: dict[str, Json] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        try:
            self._socket.settimeout(self._left(late))
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise late from None
        except OSError as error:
            raise QmpGone(f"QEMU closed the connection: {error.strerror}") from error
        while True:
            answer = self._receive(late)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise _refused(answer["error"])
            if "event" not in answer:
                raise QmpProtocol("neither an answer nor an event")

    def _receive(self, late: QmpError) -> dict[str, Json]:
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise QmpProtocol(f"a line of more than {MAX_LINE_BYTES} bytes")
            try:
                self._socket.settimeout(self._left(late))
                chunk = self._socket.recv(65536)
            except TimeoutError:
                raise late from None
            except OSError as error:
                raise QmpGone(f"QEMU closed the connection: {error.strerror}") from error
            if not chunk:
                raise QmpGone("QEMU closed the connection")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = stored.parse(line)
        except Damaged as error:
            raise QmpProtocol(f"not JSON: {line[:40]!r}") from error
        if not isinstance(message, dict):
            raise QmpProtocol("not a JSON object")
        return message

    def _left(self, late: QmpError) -> float:
        """Seconds left; the patience is for the whole conversation, however many events come."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise late
        return left


def _refused(error: Json) -> QmpRefused:
    """Only texts are taken over: the rest may be nested deeper than Python can print."""
    said = error if isinstance(error, dict) else {"desc": error}
    name, description = (
        text if isinstance(text, str) else "" for text in (said.get("class"), said.get("desc"))
    )
    return QmpRefused(name[:80] or "GenericError", description[:200])


def vcpu_threads(answer: Json) -> dict[int, tuple[int, ...]]:
    """vCPU indexes by thread id, out of `query-cpus-fast`. Raises QmpProtocol for anything else."""
    threads: dict[int, tuple[int, ...]] = {}
    for item in _objects(answer):
        index, tid = item.get("cpu-index"), item.get("thread-id")
        if type(index) is not int or type(tid) is not int or not 0 <= index < 8192 or tid <= 0:
            raise QmpProtocol("query-cpus-fast: an item without vCPU index or thread id")
        threads[tid] = (*threads.get(tid, ()), index)
    return threads


def _objects(answer: Json) -> list[dict[str, Json]]:
    if not isinstance(answer, list):
        raise QmpProtocol("not a list")
    objects = [item for item in answer if isinstance(item, dict)]
    if len(objects) != len(answer):
        raise QmpProtocol("not a list of objects")
    return objects
