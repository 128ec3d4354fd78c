"""What became of knobs in a pass: those turned and put back, and those that another program has to turn."""

from pxsched.knobs.knob import Knob
from pxsched.ledger.journal import Entry
from pxsched.plugins.view import Setting
from pxsched.value import Value


class Turn(Value):
    """One write that was made. drifted: something else had turned the knob since our last write."""

    key: str
    plugin: str
    owner: int
    before: str
    after: str
    drifted: bool = False


class Errand(Value):
    """A knob that another program turns. entry: as the journal has it; restore: it is put back."""

    knob: Knob
    entry: Entry
    restore: bool
    drifted: bool = False


class Report:
    """What one reconciliation did: writes, values put back, and what the kernel did not take.

    errands: what remains to be done without the lock; threads, stale_threads: what has to wait for them.
    unmet: the keys of knobs that are not as wanted, as their peer does not answer or another process has
    them in hand.
    """

    def __init__(self) -> None:
        self.turned: list[Turn] = []
        self.restored: list[Turn] = []
        self.failed: list[str] = []  # each said once, not at every pass
        self.errands: list[Errand] = []
        self.threads: list[Setting] = []
        self.stale_threads: list[str] = []
        self.unmet: set[str] = set()

    def add(self, more: "Report") -> None:
        """What another reconciliation of the same pass did, whose errands are run."""
        self.turned += more.turned
        self.restored += more.restored
        self.failed += more.failed
        self.unmet |= more.unmet
