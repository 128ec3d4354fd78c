"""The only way a knob is ever turned.

    desired and different from now    -> journal the original first, then write, then read back
    desired and already so            -> nothing
    journalled but no longer desired  -> put the original value back, forget it

A crash at any point leaves the original in the journal, and running the same again finishes the work.
"""

from collections.abc import Collection, Iterable

from pxsched.errors import UserError
from pxsched.knobs import knob as knobs
from pxsched.knobs.knob import Gone, Knob, Rank
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import Entry
from pxsched.plugins.view import Setting
from pxsched.root import Root
from pxsched.value import Value


class Turn(Value):
    """One write that was made. drifted: something else had turned the knob since our last write."""

    key: str
    plugin: str
    owner: int
    before: str
    after: str
    drifted: bool = False


class Report:
    """What one reconciliation did: writes, values put back, and what the kernel did not take."""

    def __init__(self) -> None:
        self.turned: list[Turn] = []
        self.restored: list[Turn] = []
        self.failed: list[str] = []  # each said once, not at every pass


def reconcile(
    root: Root, ledger: Ledger, desired: Iterable[Setting], owners: Collection[int] | None
) -> Report:
    """Makes the knobs of these owners (None: of everybody) what is desired; saves the ledger, which must be
    locked. Raises UserError when the journal cannot be written: then nothing was turned.
    """
    report = Report()
    wanted = {setting.knob.key: setting for setting in desired}
    held = ledger.journal.of(ledger.journal.owners() if owners is None else owners)
    stale = [key for key in held if key not in wanted]
    values = _read(root, ledger, wanted)
    moving = _moving_cpusets(ledger, stale, wanted, values)
    changed, drifted = _journal(root, ledger, wanted, values, moving)
    for key in stale:
        ledger.journal[key] = ledger.journal[key]._replace(leaving=True)
    ledgers.save(root, ledger)
    _restore(root, ledger, stale, report)
    _apply(root, ledger, [wanted[key] for key in changed], drifted, report)
    ledgers.save(root, ledger)
    return report


def _read(root: Root, ledger: Ledger, wanted: dict[str, Setting]) -> dict[str, str]:
    """The values now, of the knobs that still exist; entries of those that do not are forgotten."""
    values = {}
    for key, setting in wanted.items():
        try:
            values[key] = setting.knob.read(root)
        except Gone:
            ledger.journal.pop(key, None)
        except OSError as error:
            _note(ledger, key, error)
    return values


def _moving_cpusets(
    ledger: Ledger, stale: list[str], wanted: dict[str, Setting], values: dict[str, str]
) -> frozenset[int]:
    """Owners whose cpuset is about to change, which resets the affinities of the threads in it."""
    restored = {ledger.journal[key].owner for key in stale if knobs.rank_of(key) is Rank.CPUSET}
    applied = {
        setting.owner
        for key, setting in wanted.items()
        if setting.knob.rank is Rank.CPUSET
        and key in values
        and (_half_left(ledger, key) or not _same(setting.knob, values[key], setting.want))
    }
    return frozenset(restored | applied)


def _half_left(ledger: Ledger, key: str) -> bool:
    """Whether a pass was killed while it put the knob back, perhaps in the middle, as when systemd has
    forgotten a property that its cgroup still has.
    """
    entry = ledger.journal.get(key)
    return entry is not None and entry.leaving


def _journal(
    root: Root, ledger: Ledger, wanted: dict[str, Setting], values: dict[str, str], moving: frozenset[int]
) -> tuple[list[str], set[str]]:
    """Enters the originals of all knobs that will be written. Gives the keys to write, and those of them that
    somebody else turned since our last write.
    """
    changed: list[str] = []
    drifted: set[str] = set()
    now_ns = ledgers.now_ns()  # one for all: entries that say the same are stored together
    for key, now in values.items():
        setting = wanted[key]
        entry = ledger.journal.get(key)
        differs = not _same(setting.knob, now, setting.want)
        disturbed = setting.owner in moving and setting.knob.rank is Rank.THREAD
        if entry is not None:
            if (
                differs
                and not (entry.note or entry.leaving)
                and _same(setting.knob, entry.wanted, setting.want)
            ):
                entry = entry._replace(drifted_ns=now_ns, drifts=entry.drifts + 1)
                drifted.add(key)
            now_wanted = setting.owner, setting.plugin, setting.want
            if (entry.owner, entry.plugin, entry.wanted) != now_wanted:
                entry = entry._replace(owner=setting.owner, plugin=setting.plugin, wanted=setting.want)
            ledger.journal[key] = entry
        elif differs or disturbed or setting.inherited not in (None, setting.want):
            try:
                original = setting.inherited or setting.knob.original(root)
            except (Gone, OSError):
                continue
            ledger.journal[key] = Entry(setting.owner, setting.plugin, original, setting.want, now_ns)
        if differs or disturbed or _half_left(ledger, key):
            changed.append(key)
    return changed, drifted


def _same(knob: Knob, one: str, other: str) -> bool:
    """Whether two values mean the same; one that means nothing, from a damaged journal, is like no other."""
    try:
        return knob.same(one, other)
    except UserError:
        return False


def _restore(root: Root, ledger: Ledger, keys: list[str], report: Report) -> None:
    for key in sorted(keys, key=knobs.rank_of):
        entry = ledger.journal[key]
        try:
            knob = knobs.from_key(key)
            knob.write(root, entry.original)
        except Gone:
            pass
        except (ValueError, UserError) as error:  # an entry that is not ours, or not this version's
            report.failed.append(f"{key}: {error}")
        except OSError as error:
            if not _already(root, knob, entry.original):
                if _note(ledger, key, error):
                    report.failed.append(f"{key}: cannot be put back to {entry.original!r}: {error.strerror}")
                continue
        else:
            report.restored.append(Turn(key, entry.plugin, entry.owner, entry.wanted, entry.original))
        del ledger.journal[key]


def _already(root: Root, knob: Knob, value: str) -> bool:
    """Whether a knob that takes no write has that value anyway: we never really turned it."""
    try:
        return knob.same(knob.read(root), value)
    except Gone:
        return True
    except OSError:
        return False  # nobody can say: try again at the next pass


def _apply(root: Root, ledger: Ledger, settings: list[Setting], drifted: set[str], report: Report) -> None:
    for setting in sorted(settings, key=lambda setting: setting.knob.rank):
        knob, key = setting.knob, setting.knob.key
        entry = ledger.journal[key]
        try:
            before = knob.read(root)
            if knob.same(before, setting.want) and not _half_left(ledger, key):
                continue
            knob.write(root, setting.want)
            after = knob.read(root)
        except Gone:
            del ledger.journal[key]
            continue
        except OSError as error:
            if _note(ledger, key, error):
                report.failed.append(f"{key}: the kernel refused {setting.want!r}: {error.strerror}")
            continue
        note = "" if knob.same(after, setting.want) else f"the kernel made it {after}"
        if entry.note != note or entry.leaving:
            ledger.journal[key] = entry._replace(note=note, leaving=False)
        if note and entry.note != note:
            report.failed.append(f"{key}: asked for {setting.want!r}, {note}")
        report.turned.append(Turn(key, setting.plugin, setting.owner, before, after, drifted=key in drifted))


def _note(ledger: Ledger, key: str, error: OSError) -> bool:
    """Remembers why a knob is not as wanted; says whether that is news."""
    entry = ledger.journal.get(key)
    note = error.strerror or str(error)
    if entry is None or entry.note == note:
        return False
    ledger.journal[key] = entry._replace(note=note)
    return True
