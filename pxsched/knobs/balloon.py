"""How much memory a guest is told to keep.

QEMU shows what the balloon has reached, never what it was told; so what we told last is written down, in
/run/pxsched/balloons.json, and that is the knob's value. The original says within which bounds the VM is
configured: what the guest had when we came is no size to go back to, as it may need more by now.
"""

import errno
import os
import re
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

from pxsched import lock, patience, state, stored
from pxsched.guest import balloon
from pxsched.guest.qmp import QmpError, QmpGone
from pxsched.knobs.knob import Gone, Knob
from pxsched.root import Root

FILE = "run/pxsched/balloons.json"
LOCK = "run/pxsched/balloons.lock"
MOST_MIB = 1 << 30
_PATIENCE_S = 1.0
_BOUNDS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)

Told = dict[int, tuple[int, int]]  # VMID -> the process's start time, MiB

_cache: tuple[tuple[str, int, int, int], Told] | None = None


def bounds(low_mib: int, high_mib: int) -> str:
    """The original of a VM's balloon: the sizes it is configured with."""
    return f"{low_mib}-{high_mib}"


class Balloon(Knob):
    """start_ticks: of the VM's process, which tells one run of it from the next."""

    kind = "balloon"

    vmid: int
    start_ticks: int

    @property
    def peer(self) -> str:
        return f"VM {self.vmid}"

    def read(self, root: Root) -> str:
        """What we told it last; empty when it was never told."""
        start, target_mib = told(root).get(self.vmid, (0, 0))
        return str(target_mib) if start == self.start_ticks else ""

    def label(self, root: Root) -> str:
        return f"balloon of VM {self.vmid}"

    def shown(self, value: str) -> str:
        return f"{value.replace('-', ' to ')} MiB" if value else ""

    def write(self, root: Root, value: str) -> None:
        with _as_knob(self.key):
            balloon.set_target(root, self.vmid, int(value), patience_s=patience.left(_PATIENCE_S))
        _tell(root, self.vmid, (self.start_ticks, int(value)))

    def put_back(self, root: Root, original: str) -> None:
        """Hands the balloon over to Proxmox, which moves it as `shares` says: nothing is taken from the guest
        here, and where nothing is known of it, it gets all that it may have.
        """
        match = _BOUNDS.fullmatch(original)
        if match is None:
            raise ValueError(f"{original[:20]!r} are no bounds of a balloon")
        low_mib = int(match[1])
        high_mib = int(match[2] or 0)
        with _as_knob(self.key):
            balloon.hand_over(root, self.vmid, low_mib, high_mib, patience_s=patience.left(_PATIENCE_S))
        _tell(root, self.vmid, None)


@contextmanager
def _as_knob(key: str) -> Iterator[None]:
    try:
        yield
    except QmpGone:
        raise Gone(key) from None
    except QmpError as error:
        raise OSError(errno.ETIMEDOUT, str(error)) from error


def told(root: Root) -> Told:
    """What every guest was told last. Read again only when the file is another one."""
    global _cache
    try:
        found = os.stat(root.path(FILE))
    except OSError:
        return {}
    key = (root.path(FILE), found.st_ino, found.st_mtime_ns, found.st_size)
    if _cache is None or _cache[0] != key:
        _cache = key, state.load(root, FILE, _told, set_aside=False)[0] or {}
    return _cache[1]


def _told(document: object) -> Told:
    """Raises Damaged."""
    return stored.by_vmid(document, _pair)


def _pair(body: object) -> tuple[int, int]:
    start_ticks, target_mib = stored.pair(body)
    return stored.integer(start_ticks), stored.integer(target_mib, 0, MOST_MIB)


def forget_others(root: Root, vmids: Collection[int]) -> None:
    """Forgets what VMs were told that are none of these."""
    if told(root).keys() - set(vmids):
        with _alone(root):
            _write(root, {vmid: pair for vmid, pair in told(root).items() if vmid in vmids})


def _tell(root: Root, vmid: int, what: tuple[int, int] | None) -> None:
    """Writes down what a guest was told; None: it is no longer ours."""
    with _alone(root):
        others = {other: pair for other, pair in told(root).items() if other != vmid}
        _write(root, others if what is None else {**others, vmid: what})


def _alone(root: Root) -> AbstractContextManager[None]:
    return lock.held(root, LOCK, patience_s=_PATIENCE_S)


def _write(root: Root, known: Told) -> None:
    if known:
        state.save(root, FILE, known)
    else:
        state.remove(root, FILE)
