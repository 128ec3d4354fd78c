"""The timer's pass, and the loop around it: reconcile, measure, rebalance CPUs, rebalance memory, publish.

Passes never overlap: the second one leaves at once, as the first is doing its work.
"""

import gc
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from pxsched import lock
from pxsched.errors import UserError
from pxsched.guest.process import RUN_DIR
from pxsched.host import hotplug
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.lock import Locked
from pxsched.monitor import passes
from pxsched.node import guests, settle, trial
from pxsched.node import sighting as nodes
from pxsched.node.balancing import Balancer, Result
from pxsched.node.observing import Observer
from pxsched.node.settle import Pass
from pxsched.node.sighting import Node, Sighting
from pxsched.node.sightings import Sightings
from pxsched.output import complain, say
from pxsched.root import Root
from pxsched.settings.policy import Notify
from pxsched.value import Value, replace

LOCK = "run/pxsched/tick.lock"
REMEMBERED = ("etc/pve/pxsched", "etc/pve/pxsched-chain.json")  # of VMs, by `chain` and `shaping`
# While something is expected soon, a single `tick` looks so often, and leaves before the next is due.
RESTLESS_PERIOD_S, RESTLESS_PASSES = 2.0, 4
# A fast `watch` looks at everything so often, and whenever a VM came or went; in between it only measures.
LOOK_PERIOD_S = 10.0
# A `watch` has Python look for garbage so often.
COLLECT_PERIOD_S = 600.0


class Busy(UserError):
    """Another pass is under way."""


class Done(Value):
    """What one pass did. settled: None for a pass that only measured. given_back: sentences on balloons that
    are Proxmox's again.
    """

    settled: Pass | None
    balanced: Result | None
    given_back: tuple[str, ...] = ()


class Session:
    """Passes of one process. keep: it will make many, so that counters stay open between them."""

    def __init__(self, root: Root, environ: Mapping[str, str] = os.environ, *, keep: bool = False) -> None:
        self._root = root
        self._environ = environ
        self._balancer = Balancer(root, keep=keep, shares=partial(_shares, root))
        self._observer = Observer(root)
        self._node: Node | None = None
        self._topology = hotplug.Reader(root)
        self._seen = Sightings(root)
        self._sightings: list[Sighting] = []
        self._looked_s = -LOOK_PERIOD_S
        self._running = 0
        self._stale: tuple[str, ...] = ()
        self._unpublished = ""

    def tick(self) -> Done:
        """One pass. Raises Busy while another is under way, UserError when nothing could be done."""
        with _alone(self._root):
            began_s, began = time.time(), time.monotonic()
            settled = self._look() if self._is_due() else None
            done = Done(settled, self._balance())
            if settled is not None and self._node is not None:
                _count(self._node, settled, done.balanced, (began_s, time.monotonic() - began))
        if settled is None or self._node is None:
            return done
        _notify(self._node, settled)
        return replace(done, given_back=_give_back(self._node, settled.claims, self._sightings))

    def _balance(self) -> Result | None:
        """Measures, and moves what is to be moved; None where nothing is."""
        node = self._node
        if node is None or not (node.settings.node.balance_cpu or node.settings.node.balance_memory):
            return None
        ledger = ledgers.peek(self._root)
        seen = self._observer.look(ledger, self._sightings)
        balanced = self._balancer.run(node, ledger, self._sightings, seen)
        if not self._balancer.complete:
            self._looked_s = -LOOK_PERIOD_S
        return balanced

    def _is_due(self) -> bool:
        return time.monotonic() - self._looked_s >= LOOK_PERIOD_S or self._changed() != self._running

    def _look(self) -> Pass:
        """Looks at all VMs and brings claims and knobs up to date."""
        self._running = self._changed()
        self._looked_s = time.monotonic()
        self._node = node = self._open()
        for line in node.settings.stale:
            if line not in self._stale:
                say(line)
        self._stale = node.settings.stale
        ledger = ledgers.peek(self._root)
        self._sightings = self._seen.look(ledger)
        node.memos.keep({sighting.vmid for sighting in self._sightings})
        self._observer.look(ledger, self._sightings)  # before anybody is placed
        _prove(node)
        settled = settle.settle(node, self._sightings, everybody=True)
        trial.tidy(self._root)
        self._balancer.look(self._sightings)
        _keep_house(node)
        _keep_shapes(node)
        self._publish(node)
        return settled

    def _open(self) -> Node:
        """Raises UserError when the topology cannot be read."""
        if self._node is None:
            return nodes.open_node(self._root, self._environ, keep=True)
        return nodes.open_again(self._node, self._topology.read(), self._environ)

    def _publish(self, node: Node) -> None:
        """Tells the other nodes how this one stands; a failure is said once."""
        from pxsched.cluster import publish

        line = publish.tick(node, ledgers.peek(self._root), self._observer.seen)
        if line and line != self._unpublished:
            say(line)
        self._unpublished = line

    def _changed(self) -> int:
        """Another number when a pid file came or went."""
        try:
            return os.stat(self._root.path(RUN_DIR)).st_mtime_ns
        except OSError:
            return 0


def _count(node: Node, settled: Pass, balanced: Result | None, when_s: tuple[float, float]) -> None:
    """Counts the pass, and writes the metrics where they are wanted. What fails is said, and no more.

    when_s: when it began, in seconds since 1970, and how long it took.
    """
    passes.count(node.root, settled, balanced, *when_s)
    if not node.settings.node.textfile:
        return
    from pxsched.monitor import textfile

    try:
        textfile.publish(node.root, node.settings.node.textfile)
    except UserError as error:
        complain(str(error))


def _notify(node: Node, settled: Pass) -> None:
    """Mails what is news, where that is wanted; systemd is waited for without a lock. A failure is said."""
    if node.settings.node.notify is Notify.MAIL:
        from pxsched.monitor import notices

        if line := notices.tick(node, settled.changes.refused):
            complain(line)


def _give_back(node: Node, claims: Mapping[int, Claim], sightings: Iterable[Sighting]) -> tuple[str, ...]:
    """Balloons that can no longer be served, to Proxmox, which is waited for without a lock."""
    unserved = guests.unserved(claims, sightings)
    if not unserved and not node.root.exists(guests.UNSERVED):
        return ()
    from pxsched.chain import handback

    return tuple(handback.tick(node, unserved))


def _prove(node: Node) -> None:
    """A step of the quiet proofs, before the pass that turns what it wants."""
    if node.settings.node.prove:
        from pxsched.node import quiet

        for line in quiet.step(node):
            say(line)
    elif node.root.exists("run/pxsched/quiet.json"):
        from pxsched.node import quiet

        quiet.leave(node.root)


def _keep_shapes(node: Node) -> None:
    """Tells guests what they have, where the policy wants that."""
    if not node.settings.shapes:
        return
    from pxsched.shaping import keep

    for line in keep.tick(node, ledgers.peek(node.root)):
        say(line)


def _shares(root: Root, vmids: Iterable[int]) -> dict[int, str]:
    """What these VMs' `shares` were before they became ours."""
    from pxsched.chain import files

    return files.shares(root, vmids)


def _keep_house(node: Node) -> None:
    """Forgets what is remembered of VMs that are gone, and keeps Karpenter's VM when that feature is on."""
    if any(map(node.root.exists, REMEMBERED)):
        from pxsched.chain import upkeep
        from pxsched.shaping import keep as shapes

        for line in (*upkeep.clean(node.root), *shapes.clean(node.root)):
            say(line)
    if "karpenter" not in node.settings.features:
        return
    from pxsched.karpenter import keep

    for line in keep.tick(node.root, node.topology, node.settings.node):
        say(line)


def tick(root: Root, environ: Mapping[str, str] = os.environ) -> Done:
    """One pass over all VMs. Raises Busy while another is under way, UserError when nothing could be done."""
    return Session(root, environ).tick()


def attend(root: Root, environ: Mapping[str, str] = os.environ) -> Iterator[Done]:
    """One pass, and a few more while something is expected to appear soon: the interrupts of passed-through
    devices come when the guest's driver does. Raises as `tick` does.
    """
    for left in reversed(range(RESTLESS_PASSES)):
        done = tick(root, environ)
        yield done
        if done.settled is None or not done.settled.restless or not left:
            return
        time.sleep(RESTLESS_PERIOD_S)


def watch(root: Root, period_s: float) -> None:
    """Ticks for ever, every period_s seconds. What a pass cannot do is said once, and tried again.

    A pass leaves no cycles behind; to have Python look for some all the time would cost a fifth of it.
    """
    session = Session(root, keep=True)
    said = ""
    gc.disable()
    collected_s = time.monotonic()
    while True:
        begin = time.monotonic()
        if begin - collected_s > COLLECT_PERIOD_S:
            gc.collect()
            collected_s = begin
        try:
            report(session.tick())
            said = ""
        except UserError as error:
            if str(error) != said:
                complain(str(error))
                said = str(error)
        time.sleep(max(0.0, period_s - (time.monotonic() - begin)))


def report(done: Done) -> None:
    """One line, and only when something happened."""
    parts = []
    if done.settled is not None:
        changes, turned = done.settled.changes, done.settled.report
        if changes.placed:
            parts.append(f"placed VM {', '.join(map(str, changes.placed))}")
        if changes.dropped:
            gone = (
                f"{one} ({changes.why[one]})" if one in changes.why else f"{one}" for one in changes.dropped
            )
            parts.append(f"let go of VM {', '.join(gone)}")
        if turned.turned:
            drifted = sum(turn.drifted for turn in turned.turned)
            parts.append(
                f"turned {len(turned.turned)} knobs" + (f", {drifted} of them again" if drifted else "")
            )
        if turned.restored:
            parts.append(f"put {len(turned.restored)} back")
        parts += turned.failed
    if done.balanced is not None:
        parts += done.balanced.lines
    parts += done.given_back
    if parts:
        say("; ".join(parts))


@contextmanager
def _alone(root: Root) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.held(root, LOCK, patience_s=0))
        except Locked as error:
            raise Busy("another pass is under way") from error
        yield
