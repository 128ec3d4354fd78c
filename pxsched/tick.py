"""The timer's pass, and the loop around it: reconcile, measure, rebalance CPUs, rebalance memory, publish.

Passes never overlap: the second one leaves at once, as the first is doing its work.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pxsched import ledger as ledgers
from pxsched import node as nodes
from pxsched import settle
from pxsched.errors import UserError
from pxsched.node import Node
from pxsched.root import Root
from pxsched.settle import Pass

LOCK = "run/pxsched/tick.lock"


class Busy(UserError):
    """Another pass is under way."""


def tick(root: Root, environ: Mapping[str, str] = os.environ) -> Pass:
    """One pass over all VMs. Raises Busy while another is under way, UserError when nothing could be done."""
    with _alone(root):
        node = nodes.open_node(root, environ)
        sightings = settle.sight_all(root, ledgers.peek(root))
        done = settle.settle(node, sightings, everybody=True)
        _describe_capacity(node)
        return done


def _describe_capacity(node: Node) -> None:
    """Keeps Karpenter's VM, when that feature is on."""
    if "karpenter" not in node.settings.features:
        return
    from pxsched.karpenter import keep

    for line in keep.tick(node.root, node.topology, node.settings.node):
        print(line, flush=True)


def watch(root: Root, period_s: float) -> None:
    """Ticks for ever, every period_s seconds. What a pass cannot do is said once, and tried again."""
    said = ""
    while True:
        begin = time.monotonic()
        try:
            report(tick(root))
            said = ""
        except UserError as error:
            if str(error) != said:
                print(f"pxsched: {error}", file=sys.stderr, flush=True)
                said = str(error)
        time.sleep(max(0.0, period_s - (time.monotonic() - begin)))


def report(done: Pass) -> None:
    """One line, and only when something happened."""
    parts = []
    if done.changes.placed:
        parts.append(f"placed VM {', '.join(map(str, done.changes.placed))}")
    if done.changes.dropped:
        parts.append(f"let go of VM {', '.join(map(str, done.changes.dropped))}")
    if done.report.turned:
        drifted = sum(turn.drifted for turn in done.report.turned)
        parts.append(
            f"turned {len(done.report.turned)} knobs" + (f", {drifted} of them again" if drifted else "")
        )
    if done.report.restored:
        parts.append(f"put {len(done.report.restored)} back")
    parts += done.report.failed
    if parts:
        print("; ".join(parts), flush=True)


@contextmanager
def _alone(root: Root) -> Iterator[None]:
    from filelock import FileLock, Timeout

    os.makedirs(root.path(ledgers.DIR), mode=0o700, exist_ok=True)
    lock = FileLock(root.path(LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Busy("another pass is under way") from error
    try:
        yield
    finally:
        lock.release()
