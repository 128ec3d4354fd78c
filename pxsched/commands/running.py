"""`hook`, `tick`, `watch` and `restore`: the same work as Proxmox's calls, the timer and an uninstall do."""

from typing import TYPE_CHECKING

from pxsched.arguments import add, seconds
from pxsched.errors import Exit
from pxsched.output import say
from pxsched.root import Root

if TYPE_CHECKING:
    import argparse


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(commands, "hook", run_hook, "run one phase of the hookscript for a VM, as Proxmox does",
                  example="pxsched hook 100 post-start")  # fmt: skip
    command.add_argument("vm", metavar="VMID")
    command.add_argument("phase", metavar="PHASE")
    add(commands, "tick", run_tick, "look at all VMs once and put right what is not, as the timer does",
        example="pxsched tick")  # fmt: skip
    command = add(commands, "watch", run_watch, "do what `tick` does, again and again, in one process",
                  example="pxsched watch --period 1")  # fmt: skip
    command.add_argument(
        "--period", metavar="SECONDS", type=seconds(0.1, 3600), default=10.0, help="0.1 to 3600"
    )
    command = add(commands, "restore", run_restore, "put every value back that pxsched has changed",
                  example="pxsched restore --all")  # fmt: skip
    command.add_argument("--all", action="store_true", required=True, help="of all VMs and of the node")


def run_hook(options: "argparse.Namespace") -> int:
    import os

    from pxsched import hook

    return hook.main([options.vm, options.phase], {**os.environ, "PXSCHED_ROOT": options.root.base})


def run_tick(options: "argparse.Namespace") -> int:
    return attend(options.root)


def attend(root: Root) -> int:
    """What the timer starts."""
    from pxsched import tick

    try:
        for done in tick.attend(root):
            tick.report(done)
    except tick.Busy:
        return Exit.DONE  # the other pass does the work
    return Exit.DONE


def run_watch(options: "argparse.Namespace") -> int:
    from pxsched import tick

    tick.watch(options.root, options.period)
    return Exit.DONE


def run_restore(options: "argparse.Namespace") -> int:
    from pxsched.node import settle

    report = settle.restore_all(options.root)
    say(f"{len(report.restored)} values put back", *(f"pxsched: {line}" for line in report.failed))
    return Exit.REFUSED if report.failed else Exit.DONE
