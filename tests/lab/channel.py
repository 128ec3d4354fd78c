"""The tests' side of the channel to the agent inside the lab."""

import base64
import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any


class LabGone(Exception):
    """The lab went away, or was rebooted, while an answer was due."""


class RequestFailed(Exception):
    """The agent could not do what was asked (not: the command said no)."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has run in the lab."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"$ {' '.join(self.argv)}\n[{self.code}]\n{self.out}{self.err}"


class Channel:
    """Requests over one end of a socket pair whose other end is QEMU's virtio-serial port."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._next_id = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._waiting: set[int] = set()
        self._boots: list[str] = []
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True, name="lab-channel")
        self._reader.start()

    @property
    def boots(self) -> int:
        """How often the agent has come up."""
        with self._lock:
            return len(set(self._boots))

    def wait_for_boot(self, number: int, *, deadline_s: float) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or len(set(self._boots)) >= number, timeout=deadline_s
            )
            return len(set(self._boots)) >= number

    def request(self, operation: str, *, deadline_s: float, **fields: Any) -> dict[str, Any]:
        with self._lock:
            self._next_id += 1
            number = self._next_id
            self._waiting.add(number)
        line = json.dumps({"id": number, "op": operation, **fields}) + "\n"
        with self._lock:
            self._sock.sendall(line.encode())
        end = time.monotonic() + deadline_s
        with self._changed:
            while number in self._waiting and not self._closed and time.monotonic() < end:
                self._changed.wait(timeout=max(0.0, end - time.monotonic()))
            answer = self._answers.pop(number, None)
            overdue = number in self._waiting
            self._waiting.discard(number)
        if answer is None:
            raise LabGone(
                f"no answer to {operation} {fields!s:.200} "
                + ("in time" if overdue else "(lab rebooted or ended)")
            )
        if "failed" in answer:
            raise RequestFailed(answer["failed"])
        return answer

    def run(
        self, *argv: str, timeout_s: float = 60, stdin: str = "", env: dict[str, str] | None = None
    ) -> Done:
        answer = self.request(
            "exec", deadline_s=timeout_s + 30, argv=list(argv), timeout_s=timeout_s, env=env or {},
            stdin=base64.b64encode(stdin.encode()).decode(),
        )  # fmt: skip
        out, err = (base64.b64decode(answer[key]).decode(errors="replace") for key in ("out", "err"))
        return Done(argv, answer["rc"], out, err)

    def close(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def _read(self) -> None:
        pending = b""
        while True:
            try:
                data = self._sock.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._take(line)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, line: bytes) -> None:
        # A reboot may cut a line short; what follows it on the same line is the new agent's greeting.
        start = line.rfind(b'{"hello"') if b'{"hello"' in line else 0
        try:
            message = json.loads(line[start:])
        except ValueError:
            return
        with self._changed:
            if "hello" in message:
                self._boots.append(message["hello"])
                self._waiting.clear()
            elif message.get("id") in self._waiting:
                self._answers[message["id"]] = message
                self._waiting.discard(message["id"])
            self._changed.notify_all()
