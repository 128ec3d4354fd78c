"""What uninstalling does on a node, as one plan that a dry run shows and a real run carries out.

The order is what makes it safe to be cut short: no pass turns a knob again after it was put back; no VM names
a script that is gone; the list of what is ours goes last.
"""

from collections.abc import Iterator

from pxsched.chain import files as chain
from pxsched.cluster import publish
from pxsched.errors import UserError
from pxsched.guest.hookscript import SCRIPT_NAME, is_ours
from pxsched.host.name import name_of
from pxsched.monitor import textfile
from pxsched.node import proofs
from pxsched.node.sighting import config_path
from pxsched.optin import naming, rules
from pxsched.optin.apply import apply
from pxsched.optin.naming import Naming
from pxsched.optin.rules import Outcome
from pxsched.output import say, some
from pxsched.proxmox import cluster
from pxsched.proxmox import storage as storages
from pxsched.root import Root
from pxsched.sandbox.stand_in import local_api
from pxsched.settings import files as settings
from pxsched.setup import plan, removal, stub
from pxsched.setup.manifest import Manifest
from pxsched.setup.steps import Remove, RemoveDirectory, RemoveState, Step, Systemctl, Write
from pxsched.shaping import record
from pxsched.value import Value


class OptOut(Value):
    """A VM of this node loses our hookscript. Where it cannot, the stub that stays lets it start."""

    step: rules.Step
    must: bool = False

    def needed(self, root: Root) -> bool:
        return self.step.outcome is Outcome.CHANGE

    def describe(self, root: Root) -> str:
        return f"take the hookscript off VM {self.step.guest.vmid}"

    def execute(self, root: Root) -> None:
        try:
            apply(self.step, local_api(root), root)
        except UserError as error:
            raise UserError(f"VM {self.step.guest.vmid}: {error}") from error


class PutBack(Value):
    """Every value that was changed. must: what cannot be put back needs the program, which then stays."""

    must: bool

    def needed(self, root: Root) -> bool:
        return True

    def describe(self, root: Root) -> str:
        return "put back every value that pxsched has changed"

    def execute(self, root: Root) -> None:
        from pxsched.node import settle

        report = settle.restore_all(root)
        say(f"  {len(report.restored)} values")
        if report.failed:
            raise UserError(f"not put back: {'; '.join(report.failed)}")


class Script(Value):
    """The hookscript of one storage. remove: it goes when nobody names it, else a stub takes its place."""

    path: str
    remove: bool
    must: bool = False

    def needed(self, root: Root) -> bool:
        return True

    def describe(self, root: Root) -> str:
        if self.remove:
            return f"remove /{self.path}"
        return f"leave /{self.path} as a stub that starts VMs and runs what was chained"

    def execute(self, root: Root) -> None:
        named = naming.survey(root)
        holders = names(named)
        if self.remove and not holders:
            Remove(self.path).execute(root)
            return
        vms = ((guest.vmid, guest.options) for guest in named.vms)
        Write(self.path, stub.text(root, chain.find_all(root, vms)), 0o755).execute(root)
        if self.remove:
            raise UserError(f"/{self.path} stays as a stub: {', '.join(holders)} could not be changed")


class Leaving(Value):
    """steps: what is done; lines: what stays, for the end."""

    steps: tuple[Step, ...]
    lines: tuple[str, ...]


def names(named: Naming, besides: str = "") -> list[str]:
    """Who names the script now, apart from VMs of one node."""
    vms = [f"VM {guest.vmid} on {guest.node}" for guest in named.now if guest.node != besides]
    return [*vms, *(f"container {vmid} on {node}" for vmid, node in named.containers)]


def decide(
    root: Root, material: plan.Material, known: Manifest, named: Naming, *, packaged: bool, remove_stub: bool
) -> Leaving:
    """named: as surveyed now. Raises UserError where somebody would be left naming a script that is gone."""
    node = cluster.node_name(root) if named.vms or named.containers else ""
    holders = names(named, besides=node)
    if remove_stub and holders:
        raise UserError(
            f"the stub is needed: the hookscript is named by {some(holders)}",
            hint="take it off there first, or leave out --remove-stub",
        )
    units = [] if packaged else material.units()
    scripts, shared = _scripts(root, known, named)
    chosen = [Script(path, remove_stub) for path in scripts]
    opted_out = [
        OptOut(rules.disable(guest, chain.find(root, guest.vmid, guest.options)))
        for guest in named.now
        if guest.node == node
    ]
    if shared and any(step.step.want for step in opted_out):
        # The script stays for others, and with the program gone it would run nothing for these.
        opted_out = [OptOut(one.step, must=True) for one in opted_out]
    listed = removal.plan(
        root, known, lambda path: not known.is_program(path) and path not in (*scripts, *shared)
    )
    steps: list[Step] = [
        *_stop(units),
        *opted_out,
        PutBack(must=not packaged),
        *chosen,
        RemoveState("run/pxsched"),
        *([RemoveState(proofs.DIR)] if root.exists(proofs.DIR) and not packaged else []),
        Remove(publish.file_of(name_of(root)), must=False),  # what the other nodes know of this one
        *map(Remove, _metrics(root)),
        *map(Remove, listed.files),
        *map(RemoveDirectory, listed.directories),
        *([Systemctl(("daemon-reload",), must=False)] if units else []),
    ]
    yours = [path for path in _yours(root, known) if path not in listed.foreign]
    lines = [*removal.left(listed), *(f"left: /{path} (yours)" for path in yours)]
    lines += [f"left: /{path}, which other nodes use, too" for path in shared]
    needed = tuple(step for step in steps if step.needed(root))
    return Leaving(needed, (*lines, *_capacity(root), *shapes(root)))


def _metrics(root: Root) -> list[str]:
    """The file for Prometheus: node_exporter would go on to tell of it for ever."""
    directory = settings.load(root).node.textfile
    return [textfile.path(directory)] if directory else []


def _stop(units: list[str]) -> Iterator[Step]:
    """What has to end before anything is put back, so that no pass turns the knobs again."""
    for name in reversed(units):
        yield Systemctl(("disable", name), must=False, offline=True)
        yield Systemctl(("stop", name), must=False)


def _scripts(root: Root, known: Manifest, named: Naming) -> tuple[list[str], list[str]]:
    """Where our hookscript lies: for us alone, and where other nodes use it as well."""
    volumes = {guest.hookscript for guest in named.now}
    volumes |= {script for guest in named.vms for script in guest.snapshot_scripts.values()}
    storage = {volume.partition(":")[0] for volume in volumes if is_ours(volume)}
    storage |= {"local", storages.of_hookscript(root)}
    places = storages.snippets_directories(root)
    own: list[str] = []
    shared: list[str] = []
    for name, directory in places.items():
        path = f"{directory}/{SCRIPT_NAME}"
        if (name in storage or path in known.files) and plan.is_script(root, path, known):
            others = storages.is_shared(root, name) and len(cluster.nodes(root)) > 1
            (shared if others else own).append(path)
    # Of storages that Proxmox does not know any more.
    installed = [
        path for path in known.files if path.endswith(f"/{SCRIPT_NAME}") and not known.is_program(path)
    ]
    own += [path for path in installed if path not in shared and plan.is_script(root, path, known)]
    return list(dict.fromkeys(own)), shared


def _yours(root: Root, known: Manifest) -> list[str]:
    """Files of admins in our places, which were never on the list."""
    hooks = [f"etc/pxsched/{name}" for name in root.list("etc/pxsched")]
    places = [*plan.TEMPLATES.values(), *hooks, "etc/pve/pxsched.toml"]
    return [path for path in dict.fromkeys(places) if root.exists(path) and path not in known.files]


def _capacity(root: Root) -> list[str]:
    try:
        guests = cluster.guests(root, cluster.node_name(root))
    except UserError:
        return []
    return [
        f"left: VM {guest.vmid} ({guest.name}), Karpenter's description of this node"
        for guest in guests
        if guest.describes_capacity
    ]


def shapes(root: Root) -> list[str]:
    """The guests of this node that stay told what they had: it is their VMs' configuration."""
    told = [f"VM {vmid}" for vmid in record.RECORDS.vmids(root) if config_path(root, vmid)]
    return [f"left: what the guests of {some(told)} are told of their processors"] if told else []


def about_stub(steps: tuple[Step, ...], named: Naming, holders: list[str]) -> list[str]:
    """What is to be known of a hookscript that stays, or went. holders: who names it now."""
    scripts = [step for step in steps if isinstance(step, Script)]
    if not scripts:
        return []
    lines = []
    if holders:
        lines.append(f"the hookscript is still named by {some(holders)}")
    if named.snapshots:
        lines.append(f"a rollback brings it back to {len(named.snapshots)}: {some(named.snapshots)}")
    if all(step.remove for step in scripts) and not holders:
        hint = "qm set VMID --delete hookscript"
        lines.append(f"a VM that a rollback or a backup brings it back to does not start before `{hint}`")
    else:
        lines.append("backups may name it as well: the stub stays until you remove it with --remove-stub")
    return lines
