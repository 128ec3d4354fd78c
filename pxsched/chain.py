"""Other hookscripts beside ours: Proxmox runs one per VM, so ours runs the admin's own, as Proxmox would.

A VM's own script is the one its `hookscript` named before `pxsched enable --chain`; it is remembered in a
file of the cluster file system, so that it moves with the VM. Executables in /etc/pxsched/hooks.d run for all
VMs. Only root can write either. Called by the hook: imports nothing slow.
"""

import os
import re
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager

from pxsched.errors import UserError
from pxsched.ledger import lock
from pxsched.output import complain
from pxsched.root import Root

CHAIN_FILE = "etc/pve/pxsched-chain.json"
HOOKS_DIR = "etc/pxsched/hooks.d"
# What of a VM is remembered: its own hookscript, and its `shares` (empty: unset).
HOOKSCRIPTS, SHARES = "hookscripts", "shares"

# As run-parts(8): no dots, so that editors' and dpkg's left-overs are not run.
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.(sh|py|pl))?", re.ASCII)


def run_chain(root: Root, vmid: int, phase: str) -> int:
    """Runs the VM's own script, then those of hooks.d in the order of their names, each with VMID and phase.

    Returns the exit code of the first that failed, 0 when none did. A failing pre-start ends the chain, since
    the VM will not start; in the other phases every script has its turn.
    """
    first_failure = 0
    for path in scripts(root, vmid):
        code = _run(path, vmid, phase)
        first_failure = first_failure or code
        if first_failure and phase == "pre-start":
            break
    return first_failure


def scripts(root: Root, vmid: int) -> list[str]:
    """The paths of what has to run for a VM."""
    names = [name for name in root.list(HOOKS_DIR) if _NAME.fullmatch(name)]
    paths = [root.path(f"{HOOKS_DIR}/{name}") for name in names]
    found = [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]
    volume = remembered(root).get(vmid)
    if volume is None:
        return found
    from pxsched.proxmox import storage

    try:
        return [root.path(storage.script_path(root, volume)), *found]
    except UserError as error:
        # Proxmox would refuse to start the VM, too; a path that cannot be run leads to the same.
        complain(str(error))
        return [root.path(f"nonexistent/{vmid}"), *found]


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


def remembered(root: Root, what: str = HOOKSCRIPTS) -> dict[int, str]:
    """What opted-in VMs had before, by VMID; a damaged file counts as empty, with a line."""
    return _load(root).get(what, {})


def _load(root: Root) -> dict[str, dict[int, str]]:
    text = root.read(CHAIN_FILE)
    if not text:
        return {}
    import json

    try:
        document = json.loads(text)
        tables = {what: document.get(what, {}).items() for what in (HOOKSCRIPTS, SHARES)}
        return {
            what: {int(vmid): value for vmid, value in items if isinstance(value, str)}
            for what, items in tables.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        complain(f"/{CHAIN_FILE} is damaged ({error}): no chained hookscript is run")
        return {}


def remember(root: Root, vmid: int, value: str, what: str = HOOKSCRIPTS) -> None:
    """Notes what the VM has now. Raises UserError when it cannot be stored."""
    with _alone(root):
        document = _load(root)
        document.setdefault(what, {})[vmid] = value
        _store(root, document)


def forget(root: Root, vmid: int, what: str = HOOKSCRIPTS) -> None:
    """Raises UserError when the change cannot be stored."""
    with _alone(root):
        document = _load(root)
        if document.get(what, {}).pop(vmid, None) is not None:
            _store(root, document)


def _alone(root: Root) -> AbstractContextManager[None]:
    """Two commands on this node change the file one after the other."""
    return lock.held(root, "run/pxsched/chain.lock", patience_s=10)


def _store(root: Root, document: Mapping[str, Mapping[int, str]]) -> None:
    import json

    path = root.path(CHAIN_FILE)
    tables = {
        what: {str(vmid): table[vmid] for vmid in sorted(table)} for what, table in document.items() if table
    }
    try:
        if not tables:
            os.unlink(path)
            return
        with open(f"{path}.tmp.{os.getpid()}", "w", encoding="utf-8") as file:
            json.dump({"schema": 1, **tables}, file, indent=1)
        os.replace(f"{path}.tmp.{os.getpid()}", path)
    except OSError as error:
        raise UserError(f"/{CHAIN_FILE}: {error.strerror}", hint="has the cluster quorum?") from error
