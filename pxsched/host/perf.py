"""The kernel's performance counters of single threads, by perf_event_open(2).

A counter of a thread counts wherever that runs, a vCPU's guest included; it costs nothing between readings.
Hardware counters are there where the processor has them and lends them to us: most virtual machines have
none. Where more are asked for than there are, the kernel counts them in turns and says for how long.

Rules: perf_event_open(2), include/uapi/linux/perf_event.h (struct perf_event_attr, 136 bytes: VER8), and the
system call's number of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

_NUMBERS = {"x86_64": 298, "aarch64": 241, "riscv64": 241}
_ATTR_BYTES = 136
# type, size, config, sample_period, sample_type, read_format, flags
_ATTR = struct.Struct("=IIQQQQQ")
_VALUE = struct.Struct("=QQQ")  # value, time enabled, time running
_TIMES = 1 | 2  # PERF_FORMAT_TOTAL_TIME_ENABLED, _RUNNING
_CLOSE_ON_EXEC = 8
_HARDWARE, _SOFTWARE, _CACHE = 0, 1, 3
_LAST_LEVEL_READ_MISS = 2 | 0 << 8 | 1 << 16
_NODE_READ_MISS = 6 | 0 << 8 | 1 << 16


class Event(NamedTuple):
    name: str
    type: int
    config: int


HARDWARE = (
    Event("instructions", _HARDWARE, 1),
    Event("cycles", _HARDWARE, 0),
    Event("cache_misses", _CACHE, _LAST_LEVEL_READ_MISS),
    Event("remote_loads", _CACHE, _NODE_READ_MISS),
)
SOFTWARE = (Event("task_clock_ns", _SOFTWARE, 1), Event("migrations", _SOFTWARE, 4))

Raw = Mapping[str, Sequence[tuple[int, int, int]]]
"""By event, of each thread: value, ns enabled, ns it was really counted."""


class Counters:
    """Counters of these threads, open until closed. absent: the events that are not to be had, and why."""

    def __init__(self, tids: Iterable[int], events: Iterable[Event] = (*SOFTWARE, *HARDWARE)) -> None:
        self.absent: dict[str, str] = {}
        self._files: dict[str, list[int]] = {}
        tids = tuple(tids)
        for event in events:
            files: list[int] = []
            try:
                files.extend(_open(event, tid) for tid in tids)
            except OSError as error:
                for fd in files:
                    os.close(fd)
                self.absent[event.name] = _why(error)
            else:
                self._files[event.name] = files

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for fd in (fd for files in self._files.values() for fd in files):
            os.close(fd)
        self._files = {}

    def read(self) -> Raw:
        """What was counted so far."""
        found: dict[str, list[tuple[int, int, int]]] = {}
        for name, files in self._files.items():
            found[name] = []
            for fd in files:
                data = os.read(fd, _VALUE.size)
                if len(data) != _VALUE.size:  # the event is in error, as after its CPU's PMU failed
                    del found[name]
                    break
                value, enabled_ns, running_ns = _VALUE.unpack(data)
                found[name].append((value, enabled_ns, running_ns))
        return found


def between(before: Raw, after: Raw) -> dict[str, float]:
    """What was counted between two readings, all threads together; times of other counters' turns are made up
    for. An event that had no turn in a thread that ran is left out.
    """
    found = {}
    for name, threads in after.items():
        if len(before.get(name, ())) != len(threads):
            continue
        total = 0.0
        for (now, enabled, running), then in zip(threads, before[name], strict=True):
            counted, open_ns, turn_ns = now - then[0], enabled - then[1], running - then[2]
            if open_ns and not turn_ns:
                break
            total += counted * (open_ns / turn_ns) if turn_ns else counted
        else:
            found[name] = total
    return found


def _why(error: OSError) -> str:
    """Rule: perf_event_open(2), ENOENT and EOPNOTSUPP for an event that the processor lacks."""
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
        return "this machine has no such counter"
    return error.strerror or str(error)


def _open(event: Event, tid: int) -> int:
    """Raises OSError."""
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(0, f"the system call's number on {os.uname().machine} is not known here")
    head = _ATTR.pack(event.type, _ATTR_BYTES, event.config, 0, 0, _TIMES, 0)
    attr = ctypes.create_string_buffer(head, _ATTR_BYTES)
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    anywhere, no_group = -1, -1
    fd = call(
        ctypes.c_long(number),
        attr,
        ctypes.c_int(tid),
        ctypes.c_int(anywhere),
        ctypes.c_int(no_group),
        ctypes.c_ulong(_CLOSE_ON_EXEC),
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)
