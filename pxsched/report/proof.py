"""What a proof found, as a table with one sentence and as JSON."""

import math
import time
from collections.abc import Iterator
from typing import Any

from pxsched.node.trial import Trial
from pxsched.proof.figure import BY_NAME, Figure
from pxsched.proof.result import Brief, Result
from pxsched.proof.verdict import Comparison, Verdict, favours, judge
from pxsched.value import plain


def lines(result: Result) -> Iterator[str]:
    """For a person: the table, what could not be read, and what follows from it."""
    verdict = judge(result.blocks, result.ways)
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(result.began_s))
    yield (
        f"VM {result.vmid}, {at}: {len(result.blocks)} blocks of {result.block_s:.3g} s,"
        f" {verdict.rounds} whole rounds"
    )
    for name in result.ways:
        yield f"  {name}: {result.places.get(name, '')}"
    if verdict.comparisons:
        yield from _table(verdict)
    for name, why in sorted(result.absent.items()):
        yield f"  not read: {_words(name)} ({why})"
    if result.stopped:
        yield f"It ended early: {result.stopped}."
    yield f"VM {result.vmid}: {verdict.sentence}."
    if result.kept:
        yield f"Kept: {result.kept}."


def _words(name: str) -> str:
    return BY_NAME[name].words if name in BY_NAME else name.replace("_", " ")


def _table(verdict: Verdict) -> Iterator[str]:
    rows = [("figure", "", "", "difference", "interval", "")]
    for one in verdict.comparisons:
        scale = 100 if one.figure.relative else 1
        unit = " %" if one.figure.relative else ""
        interval = f"{_number(one.estimate.low * scale)} to {_number(one.estimate.high * scale)}{unit}"
        rows.append(
            (
                f"{one.figure.words}{_unit(one.figure)}",
                f"{one.base} {one.base_value:.4g}",
                f"{one.way} {one.value:.4g}",
                f"{_number(one.estimate.mean * scale)}{unit}",
                interval,
                favours(one),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()
    percent = 100 * (1 - verdict.comparisons[0].estimate.sure)
    yield f"  intervals of {percent:.4g} %; `noise` is what cannot be told from none"


def _unit(figure: Figure) -> str:
    return f" ({figure.unit})" if figure.unit else ""


def _number(value: float) -> str:
    return f"{value:+.3g}" if math.isfinite(value) else "?"


def document(result: Result) -> dict[str, Any]:
    """For --json."""
    verdict = judge(result.blocks, result.ways)
    return {
        "vmid": result.vmid,
        "began_at": result.began_s,
        "quiet": result.quiet,
        "ways": [{"name": name, "place": result.places.get(name)} for name in result.ways],
        "block_s": result.block_s,
        "settle_s": result.settle_s,
        "rounds": verdict.rounds,
        "deciding": verdict.deciding.name if verdict.deciding else None,
        "best": verdict.best,
        "sentence": verdict.sentence,
        "stopped": result.stopped or None,
        "kept": result.kept or None,
        "differences": [_comparison(one) for one in verdict.comparisons],
        "absent": dict(result.absent),
        "blocks": [plain(block) for block in result.blocks],
    }


def _comparison(one: Comparison) -> dict[str, Any]:
    found = one.estimate
    return {
        "figure": one.figure.name,
        "unit": one.figure.unit,
        "relative": one.figure.relative,
        "way": one.way,
        "base": one.base,
        "way_value": one.value,
        "base_value": one.base_value,
        "difference": _finite(found.mean),
        "low": _finite(found.low),
        "high": _finite(found.high),
        "chance": found.chance,
        "told": one.told,
        "says": favours(one) or None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def brief(one: Brief) -> str:
    """One line, for `status`."""
    at = time.strftime("%Y-%m-%d", time.localtime(one.began_s))
    return f"VM {one.vmid}, proof of {at}: {one.sentence}"


def on_trial(on: Trial | None) -> list[str]:
    """That a VM is not as its settings say at the moment, and why."""
    return [] if on is None else [f"VM {on.vmid} is on trial: it runs as {on.way} for a moment"]
