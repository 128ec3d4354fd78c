"""`prove`: whether a placement does anything for a VM, measured on the VM while it does its ordinary work."""

import argparse
import re
import signal
import time
from collections.abc import Callable
from types import FrameType

from pxsched.arguments import add, print_json, vmid, write_file
from pxsched.errors import Exit, UserError
from pxsched.node import proofs, proving, ways
from pxsched.output import progress, say
from pxsched.placement.request import EXCLUSIVE
from pxsched.proof import way as kinds
from pxsched.proof.block import Block
from pxsched.proof.result import Result
from pxsched.proof.schedule import Schedule, schedule
from pxsched.proof.verdict import amount, judge
from pxsched.root import Root
from pxsched.settings import keeping
from pxsched.value import replace

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
LONGEST_S = 24 * 3600.0
_DESCRIPTION = """\
Runs a VM in two or more ways in turn, in short blocks whose order is drawn by lot, reads the kernel's
counters of each, and says what could be told from noise. Afterwards everything is as before. Ways are stock
(as Proxmox starts it), home, dedicated and now (as its settings say); home@0-3 binds one to CPUs,
home-emulator or dedicated+governor runs it without or with one of the plugins emulator, interrupts, governor
and isolation."""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(
        commands, "prove", run, "measure what a placement does for a VM, and say it with its uncertainty",
        example="pxsched prove 100\npxsched prove 100 --between stock home dedicated --for 30m\n"
        "pxsched prove 100 --measure 'cat /run/queries-per-second' --keep\npxsched prove --show",
        description=_DESCRIPTION, reads=True,
    )  # fmt: skip
    command.add_argument("vm", metavar="VMID", type=vmid, nargs="?")
    command.add_argument("--for", dest="lasts_s", metavar="TIME", type=_time, default=600.0,
                         help="how long it takes in all, such as 90s, 10m or 1h (default: 10m)")  # fmt: skip
    command.add_argument("--between", metavar="WAY", nargs="+", help="the ways (default: stock and home; the "
                         "VM's own way where it has CPUs to itself)")  # fmt: skip
    command.add_argument("--measure", metavar="COMMAND", help="prints one number for each block")
    command.add_argument("--less", action="store_true", help="of that number less is better")
    command.add_argument("--move-memory", action="store_true", help="allow ways that move the VM's memory")
    command.add_argument("--keep", action="store_true", help="write what is better into the node's settings")
    command.add_argument("--svg", metavar="FILE", help="a picture of the blocks over time")
    command.add_argument("--dry-run", action="store_true", help="only say what it would do")
    command.add_argument("--show", action="store_true", help="what was found before, of one VM or all")
    command.add_argument("--all", action="store_true", help="every VM in turn; with --quietly")
    command.add_argument("--quietly", action="store_true",
                         help="make one step, as the timer does with `[node] prove = true`")  # fmt: skip


def _time(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", text, re.ASCII)
    lasts_s = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < lasts_s <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 10m or 1h")
    return lasts_s


def run(options: argparse.Namespace) -> int:
    if options.all or options.quietly:
        return _quietly(options)
    if options.show:
        return _show(options)
    if options.vm is None:
        raise UserError("which VM?", hint="pxsched prove VMID, or --show")
    if options.less and not options.measure:
        raise UserError("--less belongs to --measure")
    root: Root = options.root
    node, vm = ways.look(root, options.vm)
    default = ["stock", "now" if vm.home.vm_class in EXCLUSIVE else "home"]
    wanted = kinds.parse_all(options.between or default)
    planned = ways.plan(node, vm, wanted, move_memory=options.move_memory)
    times = schedule(options.lasts_s, len(planned))
    if not options.json:
        say(*_announcement(options.vm, planned, times))
    if options.dry_run:
        return Exit.DONE
    measure = proving.Measure(options.measure, less=options.less) if options.measure else None
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)
    with proving.alone(root), progress() as tell:
        result = proving.run(root, vm, planned, times, measure=measure, tell=_teller(tell, times))
        if options.keep:
            result = _keep(root, result)
    _tell(options, [result])
    if result.stopped:
        raise UserError(f"the proof of VM {options.vm} ended early: {result.stopped}")
    return Exit.DONE


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _announcement(vmid: int, planned: tuple[ways.Planned, ...], times: Schedule) -> list[str]:
    whole_s = times.settle_s + times.block_s
    return [
        f"VM {vmid} runs in {len(planned)} ways in turn for {_lasting(times.lasts_s)}: {times.blocks} blocks"
        f" of {whole_s:.3g} s, of which the first {times.settle_s:.2g} s do not count",
        *(f"  {one.name}: {one.place}" for one in planned),
        "Afterwards everything is as before, and so it is when this is interrupted.",
    ]


def _lasting(lasts_s: float) -> str:
    return f"{lasts_s / 60:.3g} min" if lasts_s >= 120 else f"{lasts_s:.3g} s"


def _teller(tell: Callable[[str], None], times: Schedule) -> Callable[[Block, int], None]:
    def told(block: Block, number: int) -> None:
        left_s = times.lasts_s * (1 - number / times.blocks)
        tell(f"block {number} of {times.blocks} was {block.way}, {_lasting(left_s)} to go")

    return told


def _keep(root: Root, result: Result) -> Result:
    """Writes the best way into the settings, where it is better than what they say, beyond the interval."""
    kept = keepable(result)
    if kept is None:
        return replace(result, kept="nothing, as nothing is better than what the settings say")
    way, why = kept
    at = time.strftime("%Y-%m-%d", time.localtime(result.began_s))
    keeping.keep(root, result.vmid, result.settings[way], [f"pxsched prove, {at}: {why}"])
    result = replace(result, kept=way)
    proofs.save(root, result)
    return result


def keepable(result: Result) -> tuple[str, str] | None:
    """The way to keep, and why; None where the settings say it already, or nothing was better for certain.

    It is compared with the way that the settings say, or with the first one where that is not among them.
    """
    verdict = judge(result.blocks, result.ways)
    ordinary = next((way for way in result.ways if not result.settings[way]), result.ways[0])
    if result.stopped or verdict.best is None or verdict.best == ordinary:
        return None
    pairs = {(one.way, one.base): one for one in verdict.comparisons if one.figure == verdict.deciding}
    up, down = pairs.get((verdict.best, ordinary)), pairs.get((ordinary, verdict.best))
    found = up if up is not None and up.better else down if down is not None and down.worse else None
    if found is None:
        return None
    details = f"{verdict.rounds} rounds of blocks of {result.block_s:.3g} s"
    return verdict.best, f"{found.way} against {found.base}: {amount(found)}; {details}"


def _show(options: argparse.Namespace) -> int:
    if options.vm is None:
        _tell(options, proofs.load_all(options.root))
        return Exit.DONE
    found = proofs.load(options.root, options.vm)
    if found is None:
        raise UserError(f"nothing was proven of VM {options.vm} yet", hint=f"pxsched prove {options.vm}")
    _tell(options, [found])
    return Exit.DONE


def _tell(options: argparse.Namespace, results: list[Result]) -> None:
    from pxsched.report import blocks, proof

    if options.svg and results and results[0].blocks:
        write_file(options.svg, blocks.draw(results[0]))
    if options.json:
        print_json({"proofs": [proof.document(one) for one in results]})
        return
    for result in results:
        say(*proof.lines(result))
    if not results:
        say("Nothing was proven on this node yet.")


def _quietly(options: argparse.Namespace) -> int:
    from pxsched.node import quiet

    if not (options.all and options.quietly) or options.vm is not None:
        raise UserError("--all and --quietly go together, without a VMID")
    say(*quiet.step_alone(options.root))
    return Exit.DONE
