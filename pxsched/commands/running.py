"""`hook` and `restore`: the same work as Proxmox's calls and an uninstall do."""

import argparse

from pxsched.cli import add
from pxsched.errors import Exit


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(commands, "hook", run_hook, "run one phase of the hookscript for a VM, as Proxmox does",
                  example="pxsched hook 100 post-start")  # fmt: skip
    command.add_argument("vm", metavar="VMID")
    command.add_argument("phase", metavar="PHASE")
    command = add(commands, "restore", run_restore, "put every value back that pxsched has changed",
                  example="pxsched restore --all")  # fmt: skip
    command.add_argument("--all", action="store_true", required=True, help="of all VMs and of the node")


def run_hook(options: argparse.Namespace) -> int:
    import os

    from pxsched import hook

    return hook.main([options.vm, options.phase], {**os.environ, "PXSCHED_ROOT": options.root.base})


def run_restore(options: argparse.Namespace) -> int:
    from pxsched import settle

    report = settle.restore_all(options.root)
    print(f"{len(report.restored)} values put back")
    for line in report.failed:
        print(f"pxsched: {line}")
    return Exit.REFUSED if report.failed else Exit.DONE
