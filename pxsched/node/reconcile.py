"""The only way a knob is ever turned.

    desired and different from now    -> journal the original first, then write, then read back
    desired and already so            -> nothing
    journalled but no longer desired  -> put the original value back, forget it

A crash at any point leaves the original in the journal, and running the same again finishes the work.

Here is what happens under the ledger's lock: deciding, journalling, and what the kernel does at once. Knobs
that another program turns for us are only entered, with a lease; `node/turning.py` does the rest.
"""

from collections.abc import Collection, Iterable, Mapping

from pxsched.errors import UserError
from pxsched.knobs import knob as knobs
from pxsched.knobs import words
from pxsched.knobs.knob import Gone, Knob, Rank
from pxsched.ledger import file as ledgers
from pxsched.ledger import leases
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import Entry, Lease
from pxsched.node.turns import Errand, Report, Turn
from pxsched.plugins.view import Setting
from pxsched.root import Root


def reconcile(
    root: Root,
    ledger: Ledger,
    desired: Iterable[Setting],
    owners: Collection[int] | None,
    *,
    insist: bool = False,
    spared: Collection[str] = (),
) -> Report:
    """Makes the knobs of these owners (None: of everybody) what is desired; saves the ledger, which must be
    locked. Whoever calls it runs the report's errands afterwards (`turning.run`).

    insist: try peers that failed lately, too. spared: the keys of knobs that stay as they are this time.
    Raises UserError when the journal cannot be written: then nothing was turned.
    """
    report = Report()
    wanted = {setting.knob.key: setting for setting in desired}
    held = ledger.journal.of(ledger.journal.owners() if owners is None else owners)
    stale = [key for key in held if key not in wanted]
    report.unmet = _out_of_reach(ledger, wanted, stale, insist=insist)
    report.unmet |= {key for key in (*wanted, *stale) if key in spared}
    values = _read(root, ledger, {key: one for key, one in wanted.items() if key not in report.unmet})
    moving = _moving_cpusets(ledger, [key for key in stale if key not in report.unmet], wanted, values)
    changed, drifted = _journal(root, ledger, held, wanted, values, moving)
    for key in stale:
        _leave(ledger, key)
    stale = [key for key in stale if key not in report.unmet]
    slow = _errands(ledger, report, wanted, changed, stale, drifted)
    waits = {errand.entry.owner for errand in report.errands if errand.knob.rank is Rank.CPUSET}
    report.stale_threads = [key for key in stale if _waits(key, ledger.journal[key].owner, waits)]
    report.threads = [wanted[key] for key in changed if _waits(key, wanted[key].owner, waits)]
    later = slow | set(report.stale_threads) | {setting.knob.key for setting in report.threads}
    ledgers.save(root, ledger)
    restore(root, ledger, [key for key in stale if key not in later], report)
    apply(root, ledger, [wanted[key] for key in changed if key not in later], drifted, report)
    ledgers.save(root, ledger)
    return report


def _out_of_reach(
    ledger: Ledger, wanted: Mapping[str, Setting], stale: Iterable[str], *, insist: bool
) -> set[str]:
    """The keys of knobs that another process has in hand, or whose peer failed and has its time off."""
    lent = [key for key, setting in wanted.items() if setting.knob.peer and key in ledger.journal]
    now_ns = ledgers.now_ns()
    found = set()
    for key in (*lent, *stale):
        entry = ledger.journal[key]
        # What is no longer wanted is tried at once, however often its turning failed.
        off = entry.retry_ns > now_ns and not insist and (entry.leaving or key in wanted)
        if off or (entry.lease is not None and leases.holds(entry.lease, now_ns)):
            found.add(key)
    return found


def _leave(ledger: Ledger, key: str) -> None:
    entry = ledger.journal[key]
    if not entry.leaving:
        ledger.journal[key] = entry._replace(leaving=True, failures=0, retry_ns=0)


def _errands(
    ledger: Ledger,
    report: Report,
    wanted: Mapping[str, Setting],
    changed: Iterable[str],
    stale: Iterable[str],
    drifted: Collection[str],
) -> set[str]:
    """Takes a lease of each knob that another program turns, and notes it in the report; gives their keys."""
    lease: Lease | None = None
    for key in (*changed, *stale):
        try:
            knob = wanted[key].knob if key in wanted else knobs.from_key(key)
        except ValueError:
            continue  # `restore` says so
        if not knob.peer:
            continue
        lease = lease or leases.take()
        entry = ledger.journal[key] = ledger.journal[key]._replace(lease=lease)
        report.errands.append(Errand(knob, entry, key not in wanted, key in drifted))
    return {errand.knob.key for errand in report.errands}


def _waits(key: str, owner: int, owners: Collection[int]) -> bool:
    """Whether it is a thread whose cpuset is turned first: that resets its affinity."""
    return owner in owners and knobs.rank_of(key) is Rank.THREAD


def _read(root: Root, ledger: Ledger, wanted: dict[str, Setting]) -> dict[str, str]:
    """The values now, of the knobs that still exist; entries of those that do not are forgotten."""
    values = {}
    for key, setting in wanted.items():
        try:
            values[key] = setting.knob.read(root)
        except Gone:
            ledger.journal.pop(key, None)
        except OSError as error:
            note(ledger, key, error)
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
        and (_half_left(ledger, key) or not _settled(ledger.journal.get(key), setting, values[key]))
    }
    return frozenset(restored | applied)


def _settled(entry: Entry | None, setting: Setting, now: str) -> bool:
    """Whether a knob is as wanted, or still as the kernel made it when the same was wanted: what narrowed it
    then, a cpuset or an interrupt controller, would do so again.
    """
    if _same(setting.knob, now, setting.want):
        return True
    wish = setting.owner, setting.want
    return entry is not None and (entry.owner, entry.wanted) == wish and entry.note == _made(now)


def _made(value: str) -> str:
    return f"the kernel made it {value}"


def _half_left(ledger: Ledger, key: str) -> bool:
    """Whether a pass was killed while it put the knob back, perhaps in the middle, as when systemd has
    forgotten a property that its cgroup still has.
    """
    entry = ledger.journal.get(key)
    return entry is not None and entry.leaving


def _journal(
    root: Root,
    ledger: Ledger,
    held: Mapping[str, Entry],
    wanted: Mapping[str, Setting],
    values: Mapping[str, str],
    moving: frozenset[int],
) -> tuple[list[str], set[str]]:
    """Enters the originals of all knobs that will be written. Gives the keys to write, and those of them that
    somebody else turned since our last write. held: the entries of the owners at hand.
    """
    changed: list[str] = []
    drifted: set[str] = set()
    now_ns = ledgers.now_ns()  # one for all: entries that say the same are stored together
    for key, now in values.items():
        setting = wanted[key]
        entry = held.get(key) or ledger.journal.get(key)
        differs = not _settled(entry, setting, now)
        disturbed = setting.owner in moving and setting.knob.rank is Rank.THREAD
        before = entry
        if entry is not None:
            if (
                differs
                and not (entry.note or entry.leaving or entry.lease)
                and _same(setting.knob, entry.wanted, setting.want)
            ):
                drifted.add(key)
            if entry.note and not entry.leaving and _same(setting.knob, now, setting.want):
                entry = entry._replace(note="")
            now_wanted = setting.owner, setting.plugin, setting.want
            if (entry.owner, entry.plugin, entry.wanted) != now_wanted:
                entry = entry._replace(owner=setting.owner, plugin=setting.plugin, wanted=setting.want)
            if entry.lease is not None:  # of a process that has ended, or of an earlier pass of ours
                entry = entry._replace(lease=None)
            if entry is not before:
                ledger.journal[key] = entry
        elif differs or disturbed or setting.inherited not in (None, setting.want):
            try:
                original = setting.inherited or setting.knob.original(root)
            except (Gone, OSError):
                continue
            ledger.journal[key] = Entry(setting.owner, setting.plugin, original, setting.want, now_ns)
        if differs or disturbed or (entry is not None and entry.leaving):
            changed.append(key)
    return changed, drifted


def _same(knob: Knob, one: str, other: str) -> bool:
    """Whether two values mean the same; one that means nothing, from a damaged journal, is like no other."""
    try:
        return knob.same(one, other)
    except (UserError, ValueError):
        return False


def restore(root: Root, ledger: Ledger, keys: Iterable[str], report: Report) -> None:
    """Puts these entries' originals back, and forgets them."""
    for key in sorted(keys, key=knobs.rank_of):
        entry = ledger.journal[key]
        try:
            knob = knobs.from_key(key)
            knob.put_back(root, entry.original)
        except Gone:
            pass
        except (ValueError, OverflowError, UserError) as error:  # not ours, or not this version's
            report.failed.append(f"{words.label(root, key)}: {error}")
        except OSError as error:
            if not already(root, knob, entry.original):
                if note(ledger, key, error):
                    report.failed.append(not_back(root, key, entry, error))
                continue
        else:
            report.restored.append(Turn(key, entry.plugin, entry.owner, entry.wanted, entry.original))
        del ledger.journal[key]


def not_back(root: Root, key: str, entry: Entry, error: OSError) -> str:
    original = words.shown(key, entry.original)
    return f"{words.label(root, key)}: cannot be put back to {original}: {error.strerror}"


def already(root: Root, knob: Knob, value: str) -> bool:
    """Whether a knob that takes no write has that value anyway: we never really turned it."""
    try:
        return knob.same(knob.read(root), value)
    except Gone:
        return True
    except OSError:
        return False  # nobody can say: try again at the next pass


def apply(
    root: Root, ledger: Ledger, settings: Iterable[Setting], drifted: Collection[str], report: Report
) -> None:
    """Turns these knobs, which are in the journal."""
    for setting in sorted(settings, key=lambda setting: setting.knob.rank):
        knob, key = setting.knob, setting.knob.key
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
            if note(ledger, key, error):
                report.failed.append(refused(root, key, setting.want, error))
            continue
        drift = taken(root, ledger, knob, after, report, drifted=key in drifted)
        report.turned.append(Turn(key, setting.plugin, setting.owner, before, after, drifted=drift))


def refused(root: Root, key: str, want: str, error: OSError) -> str:
    return f"{words.label(root, key)}: the kernel refused {words.shown(key, want)}: {error.strerror}"


def taken(
    root: Root, ledger: Ledger, knob: Knob, after: str, report: Report, *, drifted: bool = False
) -> bool:
    """Notes what a write has made of the knob. drifted: it was not as we had left it; says whether that was
    somebody's doing: what the kernel narrows at once, it narrowed before, too.
    """
    key = knob.key
    entry = ledger.journal[key]
    said = "" if knob.same(after, entry.wanted) else _made(after)
    drifted = drifted and not said
    if said and entry.note != said:
        wanted = words.shown(key, entry.wanted)
        report.failed.append(f"{words.label(root, key)}: asked for {wanted}, {said}")
    if drifted:
        entry = entry._replace(drifted_ns=ledgers.now_ns(), drifts=entry.drifts + 1)
    if drifted or (entry.note, entry.leaving) != (said, False) or entry.failures:
        ledger.journal[key] = entry._replace(note=said, leaving=False, failures=0, retry_ns=0)
    return drifted


def note(ledger: Ledger, key: str, error: OSError) -> bool:
    """Remembers why a knob is not as wanted; says whether that is news."""
    entry = ledger.journal.get(key)
    said = error.strerror or str(error)
    if entry is None or entry.note == said:
        return False
    ledger.journal[key] = entry._replace(note=said)
    return True
