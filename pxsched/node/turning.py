"""Errands: knobs that another program turns for us (QEMU, systemd, irqbalance), which may take its time.

They are run without the ledger's lock, each peer for itself, all within one deadline; the journal has their
originals already. Meanwhile their entries bear our lease, so that no other process turns the same knob. The
results are entered under the lock again, where the entry is still as we left it. A peer that fails is left
alone for longer each time.
"""

import threading
import time
from collections.abc import Sequence

from pxsched import patience
from pxsched.errors import UserError
from pxsched.knobs import words
from pxsched.knobs.knob import Gone
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import Entry
from pxsched.lock import Locked
from pxsched.node import reconcile
from pxsched.node.turns import Errand, Report, Turn
from pxsched.root import Root
from pxsched.value import Value

# For all errands of a pass together.
PATIENCE_S = 5.0
# How long a peer is left alone after its first failure, and at most.
SHORTEST_OFF_S, LONGEST_OFF_S = 15, 900


class Outcome(Value):
    """What became of an errand. error: why it failed. gone: there is no such knob any more. late: there was
    no time for it, or not enough: then it is begun, and may yet come to pass. senseless: what is wrong with
    the journal's value, which nobody can put back.
    """

    before: str = ""
    after: str = ""
    error: OSError | None = None
    gone: bool = False
    late: bool = False
    begun: bool = False
    senseless: str = ""


def run(root: Root, report: Report, *, patience_s: float = PATIENCE_S, lock_s: float = 10.0) -> None:
    """Runs the report's errands, and enters into ledger and report what came of them.

    lock_s: how long the ledger's lock may take. Raises UserError when the ledger cannot be used: what was
    turned is in the journal then.
    """
    if not report.errands:
        return
    outcomes = _all(root, report.errands, time.monotonic() + patience_s)
    owners = {errand.entry.owner for errand in report.errands}
    with ledgers.locked(root, owners, patience_s=lock_s) as ledger:
        for errand, outcome in zip(report.errands, outcomes, strict=True):
            _enter(root, ledger, errand, outcome, report)
        _threads(root, ledger, report)
        ledgers.save(root, ledger)
    report.errands = []


def _all(root: Root, errands: Sequence[Errand], deadline_s: float) -> list[Outcome]:
    """Each peer gets its errands one after the other; different peers work side by side."""
    outcomes = [Outcome(late=True)] * len(errands)
    by_peer: dict[str, list[int]] = {}
    order = [(not errand.restore, errand.knob.rank, number) for number, errand in enumerate(errands)]
    for _, _, number in sorted(order):
        by_peer.setdefault(errands[number].knob.peer, []).append(number)

    def serve(numbers: list[int]) -> None:
        with patience.until(deadline_s):
            for number in numbers:
                if time.monotonic() >= deadline_s:
                    return
                outcomes[number] = Outcome(late=True, begun=True)
                outcomes[number] = _one(root, errands[number])

    queues = list(by_peer.values())
    if len(queues) == 1:
        serve(queues[0])
        return outcomes
    workers = [threading.Thread(target=serve, args=(numbers,), daemon=True) for numbers in queues]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, deadline_s + 0.5 - time.monotonic()))
    return list(outcomes)


def _one(root: Root, errand: Errand) -> Outcome:
    knob, entry = errand.knob, errand.entry
    try:
        if errand.restore:
            knob.put_back(root, entry.original)
            return Outcome(entry.wanted, entry.original)
        before = knob.read(root)
        if not knob.same(before, entry.wanted) or entry.leaving:
            knob.write(root, entry.wanted)
        return Outcome(before, knob.read(root))
    except Gone:
        return Outcome(gone=True)
    except OSError as error:
        if errand.restore and reconcile.already(root, knob, entry.original):
            return Outcome(entry.wanted, entry.original)
        return Outcome(error=error)
    except Locked:
        return Outcome(late=True)
    except (UserError, ValueError, OverflowError) as error:
        if errand.restore:
            return Outcome(senseless=str(error))
        return Outcome(error=OSError(None, str(error)))


def _enter(root: Root, ledger: Ledger, errand: Errand, outcome: Outcome, report: Report) -> None:
    """What came of one errand; an entry that says something else by now is left to the next pass."""
    key, entry = errand.knob.key, errand.entry
    now = ledger.journal.get(key)
    if now is None or now.lease != entry.lease:
        return  # our lease had ended
    if outcome.begun:
        report.unmet.add(key)
        return  # nobody else turns it, as long as our lease lasts and this process lives
    ledger.journal[key] = now._replace(lease=None)
    if outcome.late or outcome.error is not None or now != entry:
        report.unmet.add(key)
    if outcome.late or now != entry:
        return
    if outcome.senseless:
        report.failed.append(f"{words.label(root, key)}: {outcome.senseless}")
    if outcome.gone or outcome.senseless:
        del ledger.journal[key]
    elif outcome.error is not None:
        _failed(root, ledger, errand, outcome.error, report)
    elif errand.restore:
        del ledger.journal[key]
        report.restored.append(Turn(key, entry.plugin, entry.owner, entry.wanted, entry.original))
    else:
        drifted = reconcile.taken(root, ledger, errand.knob, outcome.after, report, drifted=errand.drifted)
        turn = Turn(key, entry.plugin, entry.owner, outcome.before, outcome.after, drifted=drifted)
        report.turned.append(turn)


def _failed(root: Root, ledger: Ledger, errand: Errand, error: OSError, report: Report) -> None:
    key = errand.knob.key
    if reconcile.note(ledger, key, error):
        entry = errand.entry
        say = reconcile.not_back if errand.restore else _refused
        report.failed.append(say(root, key, entry, error))
    entry = ledger.journal[key]
    off_s = min(LONGEST_OFF_S, SHORTEST_OFF_S << min(entry.failures, 10))
    ledger.journal[key] = entry._replace(
        failures=entry.failures + 1, retry_ns=ledgers.now_ns() + off_s * 10**9
    )


def _refused(root: Root, key: str, entry: Entry, error: OSError) -> str:
    wanted = words.shown(key, entry.wanted)
    return f"{words.label(root, key)}: could not be made {wanted}: {error.strerror or error}"


def _threads(root: Root, ledger: Ledger, report: Report) -> None:
    """Threads whose cpuset was turned get their affinity now: before, it would have been reset."""
    stale = [key for key in report.stale_threads if (entry := ledger.journal.get(key)) and entry.leaving]
    reconcile.restore(root, ledger, stale, report)
    still = [
        setting
        for setting in report.threads
        if (entry := ledger.journal.get(setting.knob.key)) and entry.wanted == setting.want
    ]
    reconcile.apply(root, ledger, still, (), report)
