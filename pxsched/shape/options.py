"""A VM's options as far as they shape its processors: what they tell the guest, and what mirrors its pins.

Rules: PVE::QemuServer::config_to_command, PVE::QemuServer::Memory::config (`numa: 1` without `numaN` makes a
node of each configured socket). Sockets, cores and NUMA nodes are ordinary options; threads, dies, absent
vCPUs, distances and topoext are words that `args` gets after those it has. Where these shape processors
themselves, nothing is added.
"""

from collections.abc import Iterable, Iterator, Mapping

from pxsched.guest import config
from pxsched.guest.arguments import Smp
from pxsched.guest.options import property_string
from pxsched.host import cpulist
from pxsched.shape import cpumodel
from pxsched.shape.cpumodel import Model
from pxsched.shape.mirror import MOST_NODES, GuestNode, Mirror, NoMirror
from pxsched.shape.picture import Parts, parts
from pxsched.shape.smp import Unreadable, told, values_of, words, written
from pxsched.value import Value, replace

# Flags of QEMU with which `args` takes into its own hands what Proxmox says.
OWN_HANDS = ("readconfig",)
Changes = Mapping[str, str | None]


class Told(Value):
    """What a guest is told. node_of: guest node by vCPU, absent ones included; words: those of `args`."""

    machine: config.Machine
    smp: Smp
    node_of: Mapping[int, int]
    model: Model
    words: tuple[str, ...]


def read(options: Mapping[str, str]) -> Told:
    """Raises Unreadable where `args` hides it."""
    machine = config.machine(config.Config(options=options))
    split = words(options.get("args", ""))
    for flag in OWN_HANDS:
        if list(values_of(flag, split)):
            raise Unreadable(f"`args` has -{flag}: what the guest is told is not known")
    if any(text.startswith(("node", "cpu")) for text in values_of("numa", split)):
        raise Unreadable("`args` makes NUMA nodes of its own")
    smp = told(machine.sockets, machine.cores, _vcpus(options, machine), options.get("args", ""))
    return Told(machine, smp, _nodes(machine), cpumodel.model(options.get("cpu", ""), split), tuple(split))


def _vcpus(options: Mapping[str, str], machine: config.Machine) -> int:
    return min(int(options.get("vcpus", machine.sockets * machine.cores)), machine.sockets * machine.cores)


def _nodes(machine: config.Machine) -> dict[int, int]:
    if not machine.numa:
        return {}
    if machine.guest_nodes:
        return {vcpu: number for number, node in enumerate(machine.guest_nodes) for vcpu in node.cpus}
    return {vcpu: vcpu // machine.cores for vcpu in range(machine.sockets * machine.cores)}


def page_mib(machine: config.Machine) -> int:
    """What a guest node's memory must be a multiple of; "any" may become pages of 1 GiB."""
    return 1 if machine.hugepage_mib is None else machine.hugepage_mib or 1024


def hotplugs(options: Mapping[str, str], what: str) -> bool:
    return what in options.get("hotplug", "network,disk,usb").split(",")


def check(options: Mapping[str, str], now: Told) -> None:
    """Raises NoMirror where no topology can be written for this VM, wherever it runs."""
    if now.machine.template:
        raise NoMirror("it is a template, which never runs; clones have pins of their own")
    if "vcpus" in options and int(options["vcpus"]) < now.machine.sockets * now.machine.cores:
        raise NoMirror("`vcpus` is below sockets x cores: some vCPUs may come later", hint="delete `vcpus`")
    own = [text for flag in ("machine", "M") for text in values_of(flag, now.words)]
    if any(values_of("smp", now.words)) or any("smp." in text for text in own):
        raise NoMirror(
            "`args` has an -smp of your own, which is left alone", hint="take it out, and ask again"
        )
    if any("smp-cache" in text for text in own):
        raise NoMirror("`args` has an smp-cache of your own, which is left alone")


def changes(options: Mapping[str, str], now: Told, mirror: Mirror) -> Changes:
    """What to set (or, None, to delete) so that the next start tells the guest this. Raises NoMirror."""
    if hotplugs(options, "cpu") and not mirror.plain:
        raise NoMirror(
            "`hotplug` has cpu, and Proxmox plugs in no threads or dies", hint="take cpu out of `hotplug`"
        )
    sockets, cores = _sockets(now, mirror)
    wanted: dict[str, str | None] = {}
    if sockets != now.machine.sockets:
        wanted |= {"sockets": str(sockets), "cores": str(cores)}
    numa = _numa(options, now, mirror, sockets, cores)
    wanted |= numa
    keeps_nodes = bool(now.machine.guest_nodes) and None not in numa.values() and "numa" not in numa
    more = list(_words(now, mirror, sockets, cores, keeps_nodes=keeps_nodes))
    if more:
        wanted["args"] = " ".join([*filter(None, [options.get("args", "")]), *more])
    return {key: value for key, value in wanted.items() if options.get(key) != value}


def _sockets(now: Told, mirror: Mirror) -> tuple[int, int]:
    """The options `sockets` and `cores`, whose product stays: Proxmox counts CPUs by it."""
    smp = mirror.smp
    if smp == now.smp or smp.cpus != smp.maxcpus:
        return now.machine.sockets, now.machine.cores
    return smp.sockets, smp.cpus // smp.sockets


def _words(now: Told, mirror: Mirror, sockets: int, cores: int, *, keeps_nodes: bool) -> Iterator[str]:
    smp = mirror.smp
    if smp != told(sockets, cores, smp.cpus, ""):
        yield from ("-smp", written(smp))
    for text in mirror.remedy:
        yield from ("-global", text)
    if not any(values_of("numa", now.words)):  # distances of the admin's own stay
        kept = now.node_of if keeps_nodes else mirror.node_of()
        number = [kept.get(min(node.vcpus), 0) for node in mirror.nodes]
        for (one, other), distance in mirror.distances.items():
            yield from ("-numa", f"dist,src={number[one]},dst={number[other]},val={distance}")


def _numa(options: Mapping[str, str], now: Told, mirror: Mirror, sockets: int, cores: int) -> Changes:
    """Options that make the guest's nodes; none where they are made already."""
    present = _nodes(replace(now.machine, sockets=sockets, cores=cores))
    wanted = mirror.node_of()
    same = _split(present, range(mirror.smp.cpus)) == _split(wanted, range(mirror.smp.cpus))
    # Without `numaN` Proxmox binds the huge pages of guest socket i to host node i.
    implied = now.machine.hugepage_mib is not None and not now.machine.guest_nodes
    if implied and [node.host for node in mirror.nodes] != list(range(len(mirror.nodes))):
        same = False
    most = range(mirror.smp.maxcpus)
    listed = not present or present.keys() >= set(most)  # QEMU warns of vCPUs that no node lists
    if same and listed and _split(present, most) == _split(wanted, most):
        return {}
    if hotplugs(options, "memory"):
        raise NoMirror(
            "`hotplug` has memory, with which Proxmox has no `numaN`", hint="take it out of `hotplug`"
        )
    old = {f"numa{number}": None for number in range(MOST_NODES) if f"numa{number}" in options}
    if same and now.machine.guest_nodes:
        return {key: _with_absent(options[key], mirror) for key in old}
    if not mirror.nodes:
        if now.machine.hugepage_mib is None:
            return {**old, "numa": "0"}
        if same:
            return {}
        raise NoMirror("its huge pages are bound to guest nodes, which are left alone")
    rules = {f"numa{number}": _rule(now.machine, node) for number, node in enumerate(mirror.nodes)}
    return {**old, "numa": "1", **rules}


def _split(node_of: Mapping[int, int], vcpus: Iterable[int]) -> Parts:
    return parts(node_of.get(vcpu, 0) for vcpu in sorted(vcpus))


def _with_absent(rule: str, mirror: Mirror) -> str:
    """The admin's rule; that of the last vCPU has the absent ones, too."""
    values = property_string(rule)
    vcpus = {vcpu for part in values["cpus"].split(";") for vcpu in cpulist.parse(part)}
    if mirror.smp.cpus - 1 not in vcpus:
        return rule
    values["cpus"] = _cpus(vcpus | set(range(mirror.smp.cpus, mirror.smp.maxcpus)))
    return ",".join(f"{key}={value}" for key, value in values.items())


def _rule(machine: config.Machine, node: GuestNode) -> str:
    """One `numaN`. Host nodes only where the pins cannot change, or huge pages demand them."""
    text = f"cpus={_cpus(node.vcpus)},memory={node.memory_mib}"
    if not machine.affinity and machine.hugepage_mib is None:
        return text
    if node.host > 9 and machine.hugepage_mib is not None:
        raise NoMirror(f"Proxmox binds no huge pages to node {node.host}: host nodes have one digit there")
    return f"{text},hostnodes={node.host},policy=preferred"


def _cpus(vcpus: Iterable[int]) -> str:
    return cpulist.format(vcpus).replace(",", ";")
