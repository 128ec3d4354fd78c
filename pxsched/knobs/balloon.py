"""How much memory a guest is told to keep.

QEMU shows what the balloon has reached, never what it was told; so what we told last is written down, in
/run/pxsched/balloons.json, and that is the knob's value. The original is what the guest had when we came.
"""

import errno
import json
import os

from pxsched.guest import balloon
from pxsched.guest.qmp import QmpError, QmpGone
from pxsched.knobs.knob import Gone, Knob
from pxsched.root import Root

FILE = "run/pxsched/balloons.json"
_PATIENCE_S = 1.0

Told = dict[int, tuple[int, int]]  # VMID -> the process's start time, MiB

_cache: tuple[tuple[str, int, int, int], Told] | None = None


class Balloon(Knob):
    """start_ticks: of the VM's process, which tells one run of it from the next."""

    kind = "balloon"

    vmid: int
    start_ticks: int

    def read(self, root: Root) -> str:
        start, target_mib = told(root).get(self.vmid, (0, 0))
        return str(target_mib) if start == self.start_ticks else self.original(root)

    def label(self, root: Root) -> str:
        return f"balloon of VM {self.vmid}"

    def shown(self, value: str) -> str:
        return f"{int(value)} MiB"

    def original(self, root: Root) -> str:
        try:
            return str(balloon.actual_mib(root, self.vmid, patience_s=_PATIENCE_S))
        except QmpGone:
            raise Gone(self.key) from None
        except QmpError as error:
            raise OSError(errno.ETIMEDOUT, str(error)) from error

    def write(self, root: Root, value: str) -> None:
        try:
            balloon.set_target(root, self.vmid, int(value), patience_s=_PATIENCE_S)
        except QmpGone:
            raise Gone(self.key) from None
        except QmpError as error:
            raise OSError(errno.ETIMEDOUT, str(error)) from error
        _tell(root, {**told(root), self.vmid: (self.start_ticks, int(value))})


def told(root: Root) -> Told:
    """What every guest was told last. Read again only when the file is another one."""
    global _cache
    path = root.path(FILE)
    try:
        found = os.stat(path)
        key = (path, found.st_ino, found.st_mtime_ns, found.st_size)
        if _cache is None or _cache[0] != key:
            body = json.loads(root.read_bytes(FILE) or b"{}")
            _cache = key, {int(vmid): (int(pair[0]), int(pair[1])) for vmid, pair in body.items()}
        return _cache[1]
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return {}


def forget_others(root: Root, vmids: set[int]) -> None:
    """Forgets what VMs were told that are none of these."""
    known = told(root)
    if known.keys() - vmids:
        _tell(root, {vmid: pair for vmid, pair in known.items() if vmid in vmids})


def _tell(root: Root, known: Told) -> None:
    path = root.path(FILE)
    if not known:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        return
    with open(f"{path}.new", "w") as stream:
        json.dump(known, stream)
    os.replace(f"{path}.new", path)
