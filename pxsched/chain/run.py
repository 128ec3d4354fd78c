"""Other hookscripts beside ours: Proxmox runs one per VM, so ours runs the admin's own, as Proxmox would.

A VM's own script is the one its `hookscript` named before `pxsched enable --chain`. Executables in
/etc/pxsched/hooks.d run for all VMs. Only root can write either. Called by the hook: imports nothing slow.
"""

import os
import re
import signal
import sys

from pxsched.chain import files
from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.node.sighting import config_path
from pxsched.output import complain
from pxsched.root import Root

HOOKS_DIR = "etc/pxsched/hooks.d"

# As run-parts(8): no dots, so that editors' and dpkg's left-overs are not run.
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.(sh|py|pl))?", re.ASCII)


def run_chain(root: Root, vmid: int, phase: str, source: str = "") -> int:
    """Runs the VM's own script, then those of hooks.d in the order of their names, each with VMID and phase.

    source: the node that a migration comes from. Returns the exit code of the first that failed, 0 when none
    did. A failing pre-start ends the chain, since the VM will not start; in the other phases every script has
    its turn.
    """
    first_failure = 0
    for path in scripts(root, vmid, source):
        code = _run(path, vmid, phase)
        first_failure = first_failure or code
        if first_failure and phase == "pre-start":
            break
    return first_failure


def scripts(root: Root, vmid: int, source: str = "") -> list[str]:
    """The paths of what has to run for a VM."""
    own = own_script(root, vmid, source)
    return [*([] if own is None else [own]), *common_scripts(root)]


def common_scripts(root: Root) -> list[str]:
    """The paths of what runs for every VM."""
    paths = [root.path(f"{HOOKS_DIR}/{name}") for name in root.list(HOOKS_DIR) if _NAME.fullmatch(name)]
    return [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]


def own_script(root: Root, vmid: int, source: str = "") -> str | None:
    """The path of the VM's own script; None where it has none, or what is remembered is of another VM."""
    if not (root.exists(files.RECORDS.path_of(vmid)) or root.exists(files.OLD_FILE)):
        return None
    where = config_path(root, vmid, source)
    text = root.read(where) if where else None
    if text is None:
        complain(f"the configuration of VM {vmid} cannot be read: its own hookscript is not run")
        return None
    entry = files.find(root, vmid, config.parse(text).options)
    return path_of(root, vmid, entry.hookscript) if entry is not None and entry.hookscript else None


def path_of(root: Root, vmid: int, volume: str) -> str:
    """Where a hookscript lies. Proxmox would refuse to start the VM when it is no snippet; a path that cannot
    be run leads to the same.
    """
    from pxsched.proxmox import storage

    try:
        return root.path(storage.script_path(root, volume))
    except UserError as error:
        complain(str(error))
        return root.path(f"nonexistent/{vmid}")


def _run(path: str, vmid: int, phase: str) -> int:
    """One script as Proxmox runs it: no shell, same environment and output; a signal counts as failure."""
    sys.stdout.flush()
    try:
        pid = os.posix_spawn(
            path,
            [path, str(vmid), phase],
            os.environ,
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them, its children should not
        )
    except OSError as error:
        complain(f"hookscript {path}: {error.strerror}")
        return 1
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        complain(f"hookscript {path} {vmid} {phase}: {how}")
    return code if code >= 0 else 128 - code
