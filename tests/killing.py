"""SIGKILL at the N-th thing a process does that another one could see."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection

# Events of sys.audit; besides these, every open of a file that is to be written.
WRITES = (
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod", "socket.connect",
)  # fmt: skip


def die_at(
    number: int, events: Collection[str] = WRITES, *, pauses: Callable[[], object] = lambda: None
) -> Callable[[], None]:
    """Kills this process before its write with this number. What is called here counts one more.

    pauses: whether what happens now is another process's work.
    """
    left = number

    def count() -> None:
        nonlocal left
        if pauses():
            return
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: tuple) -> None:
        flags = arguments[2] if event == "open" else 0
        if (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)) or event in events:
            count()

    sys.addaudithook(audited)
    return count


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Does the work in a process that is killed before its write with this number; whether it was."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at(number)
            work()
        except BaseException:  # noqa: BLE001 - the last words of a process
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), "the work failed by itself"
    return code != 0
