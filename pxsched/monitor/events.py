"""What an admin should be told who does not ask: VMs without a place, starts of strict VMs that were refused,
values that the kernel does not take, and those that somebody else turns again and again.

Knobs are one event for each VM and plugin, however many threads or interrupts there are. The texts may have
words of a tenant in them.
"""

from collections.abc import Callable, Iterator, Mapping

from pxsched.ledger.journal import AGAIN_AND_AGAIN, NODE, Entry
from pxsched.monitor.refusals import Refused
from pxsched.value import Value

# What is so for less than this may be over before anybody reads of it.
LASTING_S = 60.0
# A knob that nobody else has turned for so long is left in peace.
DRIFTING_NS = 3600 * 10**9


class Event(Value):
    """key: what it is about, the same every time. text: one line. times: how often it has happened so far;
    0 for what is so for as long as it is named. lasting_s: for how long it must be so before it is told.
    """

    key: str
    text: str
    times: int = 0
    lasting_s: float = 0.0


def find(
    entries: Mapping[str, Entry],
    unplaced: Mapping[int, str],
    refused: Mapping[int, Refused],
    label: Callable[[str], str],
    now_ns: int,
) -> list[Event]:
    """All there are now, the worst first. unplaced: the reason by VMID. label: a knob in words, by its key.
    now_ns: boot time, as in the entries.
    """
    return [
        *(_refused(vmid, one) for vmid, one in sorted(refused.items())),
        *(
            Event(f"unplaced {vmid}", f"VM {vmid} has no place: {reason}", lasting_s=LASTING_S)
            for vmid, reason in sorted(unplaced.items())
        ),
        *_knobs(entries, label, now_ns),
    ]


def _refused(vmid: int, refused: Refused) -> Event:
    often = f" (refused {refused.times} times since the node booted)" if refused.times > 1 else ""
    why = f": {refused.reason}" if refused.reason else ""
    return Event(
        f"strict {vmid}", f"VM {vmid} is strict and was refused its start{why}{often}", refused.times
    )


def _knobs(entries: Mapping[str, Entry], label: Callable[[str], str], now_ns: int) -> Iterator[Event]:
    untaken: dict[tuple[int, str], list[str]] = {}
    drifting: dict[tuple[int, str], list[str]] = {}
    for key, entry in sorted(entries.items()):
        whose = entry.owner, entry.plugin
        if entry.note:
            untaken.setdefault(whose, []).append(key)
        elif entry.drifts >= AGAIN_AND_AGAIN and now_ns - (entry.drifted_ns or 0) < DRIFTING_NS:
            drifting.setdefault(whose, []).append(key)
    for (owner, plugin), keys in sorted(untaken.items()):
        said = f"{label(keys[0])} is not as wanted: {entries[keys[0]].note}"
        yield Event(f"untaken {owner} {plugin}", _line(owner, said, len(keys)), lasting_s=LASTING_S)
    for (owner, plugin), keys in sorted(drifting.items()):
        said = f"{label(keys[0])} was turned by somebody else {entries[keys[0]].drifts} times"
        yield Event(f"drifting {owner} {plugin}", _line(owner, said, len(keys)))


def _line(owner: int, said: str, count: int) -> str:
    more = f", and {count - 1} more like it" if count > 1 else ""
    return f"{'this node' if owner == NODE else f'VM {owner}'}: {said}{more}"
