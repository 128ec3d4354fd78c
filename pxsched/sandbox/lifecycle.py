"""Starting and stopping a VM, step by step as Proxmox does, hooks, lock and failures included.

Rules: PVE::QemuServer vm_start_nolock, _do_vm_stop, vm_stop_cleanup (qemu-server 9.1.13 and later:
post-stop once a run, gated by VMID.cleanup, inside the stop task). Where
`run/qemu-server/force-legacy-cleanup` exists, post-stop is left to whoever sees QEMU's event socket close,
as before that version.
"""

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

from pxsched.errors import UserError
from pxsched.guest import config, process
from pxsched.guest.qmp import Qmp, QmpError
from pxsched.output import say
from pxsched.root import Root
from pxsched.sandbox import boot, commandline, hookscript
from pxsched.sandbox.hookscript import Phase, locked
from pxsched.sandbox.node import NAME, Node
from pxsched.sandbox.stored import Stored

START_TIMEOUT_S = 30
QMP_PATIENCE_S = 5.0
_LEFT_BEHIND = ("pid", "qmp", "serial0")


def find(node: Node, vmid: int) -> process.Process | None:
    """The VM's QEMU, if it runs."""
    return process.find(Root(node.base), vmid)


def load(node: Node, vmid: int, *, migrated_from: str = "") -> Stored:
    path = node.config(vmid, node=migrated_from or NAME)
    if not path.is_file():
        raise UserError(f"Configuration file '{path.relative_to(node.base)}' does not exist")
    return Stored.read(path)


def start(node: Node, vmid: int, *, migrated_from: str = "") -> None:
    """`qm start`. On a migration's target the guest waits for its memory; its file is still the source's."""
    with locked(node, vmid):
        stored = load(node, vmid, migrated_from=migrated_from)
        _refuse_locked(vmid, stored, "migrate" if migrated_from else "")
        if find(node, vmid):
            raise UserError(f"VM {vmid} already running")
        _clear(node, vmid)
        if not migrated_from and stored.pending:
            stored = stored.merged()
            stored.write(node.config(vmid))
        settings = stored.options
        hookscript.run(node, vmid, Phase.PRE_START, settings, migrated_from=migrated_from)
        _launch(node, vmid, settings, incoming=bool(migrated_from))
        node.run(vmid, "cleanup").touch()
        _set_balloon(node, vmid, settings, incoming=bool(migrated_from))
        hookscript.run(node, vmid, Phase.POST_START, settings, migrated_from=migrated_from)


def stop(node: Node, vmid: int, *, timeout_s: float = 10, migrated_from: str = "") -> None:
    """`qm stop`: at once. The stop of a failed migration's target takes no lock."""
    if migrated_from:
        _stop(node, vmid, load(node, vmid, migrated_from=migrated_from).options, timeout_s)
    else:
        with locked(node, vmid):
            _stop(node, vmid, load(node, vmid).options, timeout_s)


def shutdown(node: Node, vmid: int, *, timeout_s: float = 60, force: bool = False) -> None:
    """`qm shutdown`: the power button. A guest that does not obey in time keeps running, unless forced."""
    with locked(node, vmid):
        settings = load(node, vmid).options
        running = find(node, vmid)
        if running is None:
            raise UserError(f"VM {vmid} not running")
        hookscript.run(node, vmid, Phase.PRE_STOP, settings)
        ask(node, vmid, "system_powerdown")
        if not _gone(node, running, timeout_s):
            if not force:
                raise UserError("VM quit/powerdown failed - got timeout")
            _end(node, vmid, running, 10)
        _finish(node, vmid, settings)


def reboot(node: Node, vmid: int, *, timeout_s: float = 60) -> None:
    """`qm reboot`: shut down, then started anew."""
    shutdown(node, vmid, timeout_s=timeout_s)
    start(node, vmid)


def cleanup(node: Node, vmid: int) -> None:
    """`qm cleanup`: what remains to be done when QEMU has ended by itself, or was killed."""
    with locked(node, vmid, timeout_s=60):
        if find(node, vmid):
            raise UserError("vm still running")
        _finish(node, vmid, load(node, vmid).options, afterwards=True)


def hotplug_vcpus(node: Node, vmid: int, settings: Mapping[str, str], count: int) -> None:
    """Add or remove vCPUs of a running VM, a device each. New threads inherit the main thread's mask."""
    vm = config.machine(config.Config(options=settings))
    if not 1 <= count <= vm.sockets * vm.cores:
        raise UserError(f"you can't add more vcpus than maxcpus: {vm.sockets * vm.cores}")
    machine = boot.recall(node, vmid)
    present = _vcpu_count(node, vmid)
    for number in range(present + 1, count + 1):
        ask(node, vmid, "device_add", commandline.hotplugged(vm, number, machine.accelerator))
    for number in range(present, count, -1):
        ask(node, vmid, "device_del", {"id": f"cpu{number}"})
        if not _until(functools.partial(_has_fewer, node, vmid, number), 5):
            raise UserError(f"error unplugging cpu{number}: the guest keeps it")
    if machine.kind is commandline.Kind.ROM:
        ask(node, vmid, "inject-nmi")


def ask(node: Node, vmid: int, command: str, arguments: Mapping[str, str | int] | None = None) -> object:
    """One QMP command on a connection of its own. Raises UserError."""
    try:
        with Qmp(Root(node.base), vmid, patience_s=QMP_PATIENCE_S) as qmp:
            return qmp.execute(command, arguments)
    except QmpError as error:
        raise UserError(f"VM {vmid} qmp command '{command}' failed - {error}") from error


def _has_fewer(node: Node, vmid: int, vcpus: int) -> bool:
    return _vcpu_count(node, vmid) < vcpus


def _vcpu_count(node: Node, vmid: int) -> int:
    answer = ask(node, vmid, "query-cpus-fast")
    return len(answer) if isinstance(answer, list) else 0


def _refuse_locked(vmid: int, stored: Stored, allowed: str) -> None:
    lock = stored.options.get("lock", "")
    if lock and lock != allowed:
        raise UserError(f"VM is locked ({lock})", hint=f"`qm set {vmid} --delete lock` unlocks it")


def _launch(node: Node, vmid: int, settings: Mapping[str, str], *, incoming: bool) -> None:
    machine = boot.prepare(node, vmid)
    command = commandline.command(node, vmid, settings, machine, incoming=incoming)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError("start failed: got timeout") from error
    except OSError as error:
        raise UserError(f"start failed: {command[0]}: {error.strerror}") from error
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode:
        raise UserError(f"start failed: QEMU exited with code {done.returncode}: {said}")
    if said:
        say(*said.splitlines())


def _set_balloon(node: Node, vmid: int, settings: Mapping[str, str], *, incoming: bool) -> None:
    """To the minimum first (a failure fails the start, though QEMU runs); statistics every two seconds."""
    vm = config.machine(config.Config(options=settings))
    if vm.balloon_mib == 0:
        return
    if vm.balloon_mib and not incoming:
        ask(node, vmid, "balloon", {"value": vm.balloon_mib << 20})
    arguments: dict[str, str | int] = {
        "path": "machine/peripheral/balloon0",
        "property": "guest-stats-polling-interval",
        "value": 2,
    }
    ask(node, vmid, "qom-set", arguments)


def _stop(node: Node, vmid: int, settings: Mapping[str, str], timeout_s: float) -> None:
    running = find(node, vmid)
    if running:
        hookscript.run(node, vmid, Phase.PRE_STOP, settings)
        _end(node, vmid, running, timeout_s)
    _finish(node, vmid, settings)


def _end(node: Node, vmid: int, running: process.Process, timeout_s: float) -> None:
    """Ask QEMU to quit, then tell it, then make it."""
    try:
        ask(node, vmid, "quit")
    except UserError as error:
        say(f"{error} - trying to terminate")
        timeout_s = 0
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None and process.alive(Root(node.base), running):
            os.kill(running.pid, number)
        if _gone(node, running, timeout_s):
            return
        timeout_s = 10
    raise UserError(f"VM {vmid}: QEMU (process {running.pid}) does not end")


def _gone(node: Node, running: process.Process, timeout_s: float) -> bool:
    return _until(lambda: not process.alive(Root(node.base), running), timeout_s)


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _finish(node: Node, vmid: int, settings: Mapping[str, str], *, afterwards: bool = False) -> None:
    """Sockets and pid file away, and post-stop once a run."""
    _clear(node, vmid)
    if not afterwards and node.path("run/qemu-server/force-legacy-cleanup").exists():
        return
    flag = node.run(vmid, "cleanup")
    if flag.exists():
        flag.unlink()
        hookscript.run(node, vmid, Phase.POST_STOP, settings)


def _clear(node: Node, vmid: int) -> None:
    for kind in _LEFT_BEHIND:
        node.run(vmid, kind).unlink(missing_ok=True)
