"""The subset of Proxmox's `qm` that a sandbox has, with its option names.

Rules: PVE::CLI::qm and PVE::API2::Qemu. Options are `--name value`, `--name=value` or with a single dash;
an option without value is 1.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.output import say
from pxsched.sandbox import boot, lifecycle, options
from pxsched.sandbox.commandline import Kind, command, hotplugs_cpus
from pxsched.sandbox.hookscript import locked
from pxsched.sandbox.node import Node
from pxsched.sandbox.options import Effect
from pxsched.sandbox.stored import Stored
from pxsched.value import Value

VMID = re.compile(r"[1-9]\d{2,8}", re.ASCII)
USAGE = """\
qm create VMID [--guest rom|linux] [--OPTION VALUE ...]   rom burns or sleeps, linux boots
qm set VMID [--OPTION VALUE ...] [--delete OPTION,...]
qm start VMID [--migratedfrom NODE]
qm stop VMID [--timeout S] | shutdown VMID [--timeout S] [--forceStop] | reboot VMID [--timeout S]
qm reset VMID | suspend VMID | resume VMID
qm list | status VMID | config VMID | pending VMID | showcmd VMID
qm destroy VMID"""


class Call(Value):
    """One `qm` command, taken apart."""

    node: Node
    vmid: int
    options: Mapping[str, str]

    def seconds(self, name: str, default: float) -> float:
        text = self.options.get(name, str(default))
        try:
            return float(text)
        except ValueError:
            raise UserError(f"--{name}: {text!r} is no number") from None


def run(node: Node, arguments: Sequence[str]) -> None:
    """Do one command. Raises UserError."""
    name, *rest = [*arguments, ""][: max(1, len(arguments))]
    if name == "list":
        _list(node)
        return
    action = _ACTIONS.get(name)
    if action is None or not rest:
        raise UserError(f"qm: no such command: {' '.join(arguments)!r}", hint="\n" + USAGE)
    if VMID.fullmatch(rest[0]) is None:
        raise UserError(f"vmid: {rest[0]!r} is no VM ID (100 to 999999999)")
    action(Call(node, int(rest[0]), parse(rest[1:])))


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """Options by name. Raises UserError for anything else."""
    found: dict[str, str] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        match = re.fullmatch(r"--?([A-Za-z][A-Za-z_-]*\d*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            raise UserError(f"qm: {argument!r} is no option")
        value = match[2]
        if value is None:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "1"
        if match[1] in found:
            raise UserError(f"qm: --{match[1]} comes twice")
        found[match[1]] = value
    return found


def _create(call: Call) -> None:
    path = call.node.config(call.vmid)
    if path.exists():
        raise UserError(f"unable to create VM {call.vmid} - VM {call.vmid} already exists on node")
    values = dict(call.options)
    kind = values.pop("guest", Kind.ROM)
    if kind not in list(Kind):
        raise UserError(f"--guest: {kind!r} is neither rom nor linux")
    options.check(call.node, values)
    boot.choose_kind(call.node, call.vmid, Kind(kind))
    description = values.pop("description", "")
    Stored(options=values, description=description).write(path)


def _set(call: Call) -> None:
    values: dict[str, str | None] = dict(call.options)
    for key in (values.pop("delete", None) or "").replace(";", ",").split(","):
        if key.strip():
            options.effect(key.strip())
            values[key.strip()] = None
    given = {key: value for key, value in values.items() if value is not None}
    options.check(call.node, given)
    with locked(call.node, call.vmid):
        stored = lifecycle.load(call.node, call.vmid)
        stored = (
            _applied(call, stored, values)
            if lifecycle.find(call.node, call.vmid)
            else _stored(stored, values).merged()
        )
        stored.write(call.node.config(call.vmid))
    say(f"update VM {call.vmid}: " + " ".join(f"-{key} {value}" for key, value in call.options.items()))


def _stored(stored: Stored, values: Mapping[str, str | None]) -> Stored:
    rest = dict(values)
    if "description" in rest:
        description = rest.pop("description") or ""
        stored = Stored(stored.options, stored.pending, description, stored.rest)
    return stored.with_options(rest)


def _applied(call: Call, stored: Stored, values: Mapping[str, str | None]) -> Stored:
    """To a running VM: what can be done at once is, the rest waits."""
    for key, value in values.items():
        match options.effect(key):
            case Effect.AT_ONCE:
                stored = _stored(stored, {key: value})
            case Effect.VCPUS if hotplugs_cpus(stored.options):
                vm = config.machine(config.Config(options=stored.options))
                count = int(value) if value else vm.sockets * vm.cores
                lifecycle.hotplug_vcpus(call.node, call.vmid, stored.options, count)
                stored = stored.with_options({key: value})
            case Effect.BALLOON if stored.options.get("shares") == "0" and value != "0":
                vm = config.machine(config.Config(options=stored.options))
                mib = int(value) if value else vm.memory_mib
                lifecycle.ask(call.node, call.vmid, "balloon", {"value": mib << 20})
                stored = stored.with_options({key: value})
            case _:
                stored = stored.with_pending({key: value})
    return stored


def _start(call: Call) -> None:
    lifecycle.start(call.node, call.vmid, migrated_from=call.options.get("migratedfrom", ""))


def _stop(call: Call) -> None:
    migrated_from = call.options.get("migratedfrom", "")
    lifecycle.stop(call.node, call.vmid, timeout_s=call.seconds("timeout", 10), migrated_from=migrated_from)


def _shutdown(call: Call) -> None:
    force = call.options.get("forceStop", "0") == "1"
    lifecycle.shutdown(call.node, call.vmid, timeout_s=call.seconds("timeout", 60), force=force)


def _reboot(call: Call) -> None:
    lifecycle.reboot(call.node, call.vmid, timeout_s=call.seconds("timeout", 60))


def _reset(call: Call) -> None:
    lifecycle.ask(call.node, call.vmid, "system_reset")


def _suspend(call: Call) -> None:
    lifecycle.ask(call.node, call.vmid, "stop")


def _resume(call: Call) -> None:
    lifecycle.ask(call.node, call.vmid, "cont")


def _status(call: Call) -> None:
    lifecycle.load(call.node, call.vmid)
    say(f"status: {'running' if lifecycle.find(call.node, call.vmid) else 'stopped'}")


def _config(call: Call) -> None:
    stored = lifecycle.load(call.node, call.vmid)
    described = {"description": stored.description} if stored.description else {}
    for key, value in sorted({**stored.merged().options, **described}.items()):
        say(f"{key}: {value}")


def _pending(call: Call) -> None:
    stored = lifecycle.load(call.node, call.vmid)
    for key in sorted(set(stored.options) | set(stored.pending) - {"delete"}):
        if key in stored.options:
            say(f"cur {key}: {stored.options[key]}")
        if key in stored.pending:
            say(f"new {key}: {stored.pending[key]}")
        if key in stored.deletions:
            say(f"del {key}: {stored.options[key]}")


def _showcmd(call: Call) -> None:
    import shlex

    settings = lifecycle.load(call.node, call.vmid).options
    say(
        shlex.join(
            command(call.node, call.vmid, settings, boot.prepare(call.node, call.vmid), incoming=False)
        )
    )


def _destroy(call: Call) -> None:
    with locked(call.node, call.vmid):
        lifecycle.load(call.node, call.vmid)
        if lifecycle.find(call.node, call.vmid):
            raise UserError(f"VM {call.vmid} is running - destroy failed")
        call.node.config(call.vmid).unlink()
        boot.forget(call.node, call.vmid)
    call.node.lock(call.vmid).unlink(missing_ok=True)


def _list(node: Node) -> None:
    say(f"{'VMID':>10} {'NAME':<20} {'STATUS':<10} {'MEM(MB)':<10} {'PID':<10}")
    for vmid in node.vmids():
        vm = config.machine(config.Config(options=lifecycle.load(node, vmid).options))
        found = lifecycle.find(node, vmid)
        status = "running" if found else "stopped"
        pid = found.pid if found else 0
        say(f"{vmid:>10} {vm.name or f'VM {vmid}':<20} {status:<10} {vm.memory_mib:<10} {pid:<10}")


_ACTIONS: dict[str, Callable[[Call], None]] = {
    "create": _create,
    "set": _set,
    "start": _start,
    "stop": _stop,
    "shutdown": _shutdown,
    "reboot": _reboot,
    "reset": _reset,
    "suspend": _suspend,
    "resume": _resume,
    "status": _status,
    "config": _config,
    "pending": _pending,
    "showcmd": _showcmd,
    "destroy": _destroy,
}
