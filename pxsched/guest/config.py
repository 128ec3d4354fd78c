"""What in a VM's configuration matters for placing it.

Rules: Proxmox qemu-server, PVE::QemuServer::config_to_command. The file's grammar is `grammar`'s, that of the
values `options`'.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pxsched.guest import options as values
from pxsched.guest.grammar import Config as Config
from pxsched.guest.grammar import parse as parse
from pxsched.guest.hookscript import is_ours
from pxsched.guest.options import GuestNode as GuestNode
from pxsched.guest.options import HostPci as HostPci
from pxsched.value import Value, replace

if TYPE_CHECKING:
    from pxsched.guest.arguments import Smp

# `-overcommit mem-lock=on`, and as it was called before QEMU 3.0; `on-fault` locks what is touched.
_LOCKED = r"\b(?:mem-lock|mlock)=(?:on|true|yes|y)\b"


class Machine(Value):
    """A VM as its configuration describes it, with Proxmox's defaults.

    sockets, cores: as configured. vcpus: those that QEMU starts. smp: what `-smp` in `args` makes of all
    three, None without one.
    affinity: CPUs in written order. balloon_mib: None = unset (device present), 0 = no device.
    hugepage_mib: 0 = any size ("any"), None = none. iothreads: drives with a thread of their own.
    vfio: `args` passes a device through. locked: or keeps all its memory locked. encrypted: its memory is
    (AMD SEV, Intel TDX).
    """

    name: str = ""
    sockets: int = 1
    cores: int = 1
    vcpus: int = 1
    smp: "Smp | None" = None
    memory_mib: int = 512
    balloon_mib: int | None = None
    shares: int = 1000
    weight: int = 100
    cpu_limit: float = 0.0
    affinity: tuple[int, ...] = ()
    numa: bool = False
    guest_nodes: tuple[GuestNode, ...] = ()
    hugepage_mib: int | None = None
    hostpci: tuple[HostPci, ...] = ()
    vfio: bool = False
    locked: bool = False
    encrypted: bool = False
    nics: tuple[int, ...] = ()
    iothreads: tuple[str, ...] = ()
    hookscript: str = ""
    tags: tuple[str, ...] = ()
    lock: str = ""
    template: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def opted_in(self) -> bool:
        """Whether the VM's hookscript is ours; only root@pam can set it."""
        return is_ours(self.hookscript)


def machine(config: Config) -> Machine:
    """The VM that the options in force describe. Raises nothing: `parse` dropped what is invalid."""
    options = config.options
    warnings: list[str] = []
    sockets = int(options.get("sockets") or options.get("smp", "1"))  # `smp` is what it was called once
    cores = int(options.get("cores", "1"))
    most = min(sockets * cores, values.MAX_VCPUS)
    vcpus = int(options.get("vcpus", most))
    if vcpus > most:
        warnings.append(f"the VM cannot start: vcpus {vcpus} is more than sockets x cores = {most}")
        vcpus = most
    smp = _smp(options.get("args", ""), sockets, cores, vcpus, warnings)
    affinity = options.get("affinity", "")
    if affinity and not values.taskset_takes(affinity):
        warnings.append(
            f"the VM cannot start: taskset refuses affinity {affinity[:60]!r} for its blanks or empty entries"
        )
    weight = int(options.get("cpuunits", "0")) or 100
    balloon = options.get("balloon")
    hugepages = options.get("hugepages")
    return Machine(
        name=options.get("name", ""),
        sockets=sockets,
        cores=cores,
        vcpus=smp.cpus if smp else vcpus,
        smp=smp,
        memory_mib=values.memory(options.get("memory", "512")),
        balloon_mib=None if balloon is None else int(balloon),
        shares=int(options.get("shares", "1000")),
        weight=min(10000, weight),  # cgroup v2; PVE::CGroup::clamp_cpu_shares
        cpu_limit=values.fraction(options.get("cpulimit", "0")),
        affinity=values.affinity(affinity),
        numa=values.boolean(options.get("numa", "0")),
        guest_nodes=_guest_nodes(options),
        hugepage_mib=None if hugepages is None else values.hugepages(hugepages),
        hostpci=tuple(values.hostpci(number, text) for number, text in _numbered(options, "hostpci")),
        vfio=any(driver in options.get("args", "") for driver in ("vfio-", "vhost-vdpa")),
        locked=re.search(_LOCKED, options.get("args", "")) is not None,
        encrypted="amd-sev" in options or "intel-tdx" in options,
        nics=tuple(number for number, _text in _numbered(options, "net")),
        iothreads=_iothreads(options),
        hookscript=options.get("hookscript", ""),
        tags=tuple(tag for tag in re.split(r"[;,\s]+", options.get("tags", "")) if tag),
        lock=options.get("lock", ""),
        template=values.boolean(options.get("template", "0")),
        warnings=tuple(warnings),
    )


def _smp(args: str, sockets: int, cores: int, vcpus: int, warnings: list[str]) -> "Smp | None":
    """What `args` makes of the guest's processors; warns when it is another number of them."""
    if "smp" not in args:
        return None
    from pxsched.guest import arguments

    configured = arguments.Smp(vcpus, sockets * cores, sockets, cores)
    try:
        smp = arguments.smp(args, configured)
    except ValueError as error:
        warnings.append(f"the VM cannot start: QEMU refuses the -smp in `args`: {error}")
        return None
    if smp is not None and smp.cpus != vcpus:
        warnings.append(
            f"-smp in `args` makes it {smp.cpus} vCPUs ({smp}), where the configuration says {vcpus}"
        )
    return smp


def _guest_nodes(options: Mapping[str, str]) -> tuple[GuestNode, ...]:
    """In order; those behind a gap bear their names."""
    found = ((number, values.guest_node(text)) for number, text in _numbered(options, "numa"))
    return tuple(
        node if number == position else replace(node, name=f"numa{number}")
        for position, (number, node) in enumerate(found)
    )


def _numbered(options: Mapping[str, str], stem: str) -> list[tuple[int, str]]:
    found = (
        (int(number), value)
        for key, value in options.items()
        if key.startswith(stem) and (number := key.removeprefix(stem)).isdecimal() and number.isascii()
    )
    return sorted(found)


def _iothreads(options: Mapping[str, str]) -> tuple[str, ...]:
    """Drives whose `iothread` counts: virtioN always, scsiN only with virtio-scsi-single."""
    single = options.get("scsihw") == "virtio-scsi-single"
    stems = ("virtio", "scsi") if single else ("virtio",)
    return tuple(
        f"{stem}{number}"
        for stem in stems
        for number, text in _numbered(options, stem)
        if _has_iothread(text)
    )


def _has_iothread(drive: str) -> bool:
    try:
        said = values.property_string(drive, "file")
        return said.get("media") != "cdrom" and values.boolean(said.get("iothread", "0"))
    except ValueError:
        return False  # Proxmox drops such a line
