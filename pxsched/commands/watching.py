"""`top`: the node as a view that lives, in the terminal."""

import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pxsched.arguments import add, seconds
from pxsched.errors import Exit, UserError
from pxsched.root import Root

if TYPE_CHECKING:
    import argparse

    from pxsched.report.frame import Frame, Watcher

UP, DOWN, ENTER, LEAVE = "up", "down", "enter", "leave"
_KEYS = {
    b"\x1b[A": UP, b"\x1bOA": UP, b"k": UP, b"\x1b[B": DOWN, b"\x1bOB": DOWN, b"j": DOWN,
    b"\r": ENTER, b"\n": ENTER, b"q": LEAVE, b"Q": LEAVE, b"\x03": LEAVE,
}  # fmt: skip
# Between two looks for a frame that is printed once.
FIRST_LOOK_S = 0.3


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(
        commands, "top", run, "watch the node: CPUs, VMs, who waits, what was moved and what is wrong",
        example="pxsched top\npxsched top --period 0.5\npxsched top --once",
    )  # fmt: skip
    command.add_argument("--period", metavar="SECONDS", type=seconds(0.5, 60), default=2.0, help="0.5 to 60")
    command.add_argument("--once", action="store_true", help="print one picture and leave")


def run(options: "argparse.Namespace") -> int:
    try:
        import rich  # noqa: F401 - a clear word where it is missing
    except ImportError as error:
        raise UserError("`top` needs rich", hint="apt-get install python3-rich") from error
    from pxsched.report.frame import Watcher

    if not options.once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("`top` needs a terminal", hint="`pxsched top --once` prints one picture anywhere")
    watcher = Watcher(options.root)
    try:
        if options.once:
            _once(options.root, watcher)
        else:
            _live(options.root, watcher, options.period)
    except KeyboardInterrupt:
        pass
    finally:
        watcher.close()
    return Exit.DONE


def _once(root: Root, watcher: "Watcher") -> None:
    import time

    from rich.console import Console

    from pxsched.report.frame import terminal_size
    from pxsched.report.screen import draw

    watcher.look()
    if root.live:
        time.sleep(FIRST_LOOK_S)  # what VMs do is measured between two looks
    console = Console(width=terminal_size()[0], highlight=False)
    console.print(draw(watcher.look(), width=console.width, keys=False))


def _live(root: Root, watcher: "Watcher", period_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from pxsched.report.screen import draw

    console = Console(highlight=False)
    selected: int | None = None
    opened = False
    frame = watcher.look()
    screen = Live(console=console, screen=True, auto_refresh=False)
    with _unbuffered(sys.stdin.fileno()) as keys, screen as live:
        while True:
            details = _details(root, selected) if opened and selected is not None else None
            picture = draw(
                frame,
                width=console.width,
                height=console.height,
                selected=selected,
                details=details,
                keys=True,
            )
            live.update(picture, refresh=True)
            pressed = next_keys(keys, period_s)
            if pressed is None:
                frame = watcher.look()
            for key in pressed or [""]:
                if key == LEAVE:
                    return
                opened = opened != (key == ENTER)
                selected = chosen(frame, selected, key)


def chosen(frame: "Frame", selected: int | None, key: str) -> int | None:
    """The VM that is marked after a key: the first one, until somebody goes further."""
    vmids = [row.vmid for row in frame.rows]
    if not vmids:
        return None
    if selected not in vmids:
        return vmids[0] if key in (UP, DOWN, ENTER) or selected is not None else None
    step = {UP: -1, DOWN: 1}.get(key, 0)
    return vmids[max(0, min(len(vmids) - 1, vmids.index(selected) + step))]


def next_keys(fd: int, patience_s: float) -> list[str] | None:
    """The keys that were pressed and mean something; None when the time is over.

    A terminal that is gone means leaving.
    """
    ready, _, _ = select.select([fd], [], [], patience_s)
    if not ready:
        return None
    data = os.read(fd, 256)
    if not data:
        return [LEAVE]
    return [_KEYS[key] for key in re.findall(rb"\x1b[\[O].|.", data, re.DOTALL) if key in _KEYS]


@contextmanager
def _unbuffered(fd: int) -> Iterator[int]:
    """The terminal gives each key at once, and does not show it."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _details(root: Root, vmid: int) -> Sequence[str]:
    """Why a VM is where it is, and how its knobs stand."""
    from pxsched.ledger import file as ledgers
    from pxsched.node import planning
    from pxsched.report import knobs, text

    ledger = ledgers.peek(root)
    claim = ledger.claims.get(vmid)
    if claim is None:
        return ["  it is not opted in: pxsched enable makes it ours"]
    entries = {key: entry for key, entry in ledger.journal.items() if entry.owner == vmid}
    now = {key: planning.standing(root, key, entry) for key, entry in entries.items()}
    lines = knobs.lines(root, entries, now).get(vmid, [])
    return [f"  {line}" for line in (*text.placement(claim.placement), *lines)]
