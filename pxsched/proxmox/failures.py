"""VMs that could not be changed: said once, and tried again after a longer while each time, or at once when
their configuration is another one. Who changes them keeps a file below /run of those that failed.
"""

from collections.abc import Mapping

from pxsched import state, stored
from pxsched.root import Root
from pxsched.value import Value, plain

# How long a VM is left alone after its first failure, and at most.
SHORTEST_OFF_S, LONGEST_OFF_S = 60, 3600
_MOST_TRIES = 30
_MOST_TEXT = 1000


class Failure(Value):
    """why: what was said of it. digest: of the configuration that was to be changed. tries: in a row, with
    the same configuration. again_s: when to try again, by the monotonic clock.
    """

    why: str
    digest: str
    tries: int
    again_s: float


def after(before: Failure | None, why: str, digest: str, now_s: float) -> Failure:
    """What is remembered of one more failure."""
    same = before is not None and before.digest == digest
    tries = min(before.tries + 1, _MOST_TRIES) if before is not None and same else 1
    off_s = min(SHORTEST_OFF_S << (tries - 1), LONGEST_OFF_S)
    return Failure(why[:_MOST_TEXT], digest, tries, now_s + off_s)


def rests(failure: Failure, digest: str, now_s: float) -> bool:
    """Whether the VM with this configuration is left alone yet."""
    return failure.digest == digest and 0 < failure.again_s - now_s <= LONGEST_OFF_S


def load(root: Root, file: str) -> dict[int, Failure]:
    """By VMID. A damaged file counts for nothing: what it knew is tried and said once more."""
    return state.load(root, file, _failures, set_aside=False)[0] or {}


def _failures(document: object) -> dict[int, Failure]:
    return stored.by_vmid(stored.table(document).get("vms"), _failure)


def _failure(document: object) -> Failure:
    entry = stored.table(document)
    return Failure(
        stored.text(entry.get("why"), _MOST_TEXT),
        stored.text(entry.get("digest"), 64),
        stored.integer(entry.get("tries"), 1, _MOST_TRIES),
        stored.number(entry.get("again_s")),
    )


def save(root: Root, file: str, failures: Mapping[int, Failure]) -> None:
    """Without a writable /run they are tried and said at each pass."""
    try:
        if failures:
            state.save(root, file, {"schema": 1, "vms": plain(failures)})
        else:
            state.remove(root, file)
    except OSError:
        return
