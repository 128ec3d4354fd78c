"""SIGKILL at the N-th thing a process does that another one could see."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path

from pxsched.guest import config
from pxsched.root import Root

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


class Proxmox:
    """Its API, another process: it replaces a configuration as a whole."""

    def __init__(self, root: Root) -> None:
        self._root = root

    def call(self, method: object, path: str, params: dict[str, str] | None = None) -> None:
        _, node, _, vmid, _ = path.split("/")
        place = Path(self._root.path(f"etc/pve/nodes/{node}/qemu-server/{vmid}.conf"))
        options = config.parse(place.read_text()).options
        changes = dict(params or {})
        gone = {"digest", *changes.pop("delete", "").split(",")}
        new = {key: value for key, value in {**options, **changes}.items() if key not in gone}
        text = "".join(f"{key}: {value}\n" for key, value in new.items())
        place.with_suffix(".new").write_text(text)
        place.with_suffix(".new").replace(place)
