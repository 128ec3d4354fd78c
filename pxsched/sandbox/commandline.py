"""QEMU's command line as Proxmox writes it, from a VM's configuration.

Rules: PVE::QemuServer::config_to_command, PVE::QemuServer::Memory::config (NUMA), print_cpu_device
(hot-plugged vCPUs). `-id` is Proxmox's own addition to QEMU and left out; disks are empty ones that keep no
data.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum

from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.guest.arguments import words
from pxsched.host import cpulist
from pxsched.sandbox.node import Node
from pxsched.value import Value


class Kind(StrEnum):
    """What boots in the VM."""

    ROM = "rom"
    LINUX = "linux"


class Accelerator(StrEnum):
    KVM = "kvm"
    TCG = "tcg"

    @property
    def argument(self) -> str:
        return "kvm" if self is Accelerator.KVM else "tcg,thread=multi"

    @property
    def cpu(self) -> str:
        return "kvm64" if self is Accelerator.KVM else "qemu64"


class Boot(Value):
    """What to boot, and how. files: the ROM image; or kernel and first root. most_vcpus: CPUs of the node."""

    kind: Kind
    files: tuple[str, ...]
    accelerator: Accelerator
    most_vcpus: int


KERNEL_ARGUMENTS = (
    "console=ttyS1 quiet nokaslr mitigations=off tsc=reliable no_timer_check cryptomgr.notests panic=-1 "
    "rdinit=/init"
)


def command(node: Node, vmid: int, settings: Mapping[str, str], boot: Boot, *, incoming: bool) -> list[str]:
    """The whole command, `taskset` included. Raises UserError for more vCPUs than the node has CPUs."""
    args = settings.get("args", "")
    # Proxmox writes its own part as if there were no `args`, and appends them.
    settings = {key: value for key, value in settings.items() if key != "args"}
    vm = config.machine(config.Config(options=settings))
    if vm.sockets * vm.cores > boot.most_vcpus:
        raise UserError(f"MAX {boot.most_vcpus} vcpus allowed per VM on this node")
    taskset = ["taskset", "--cpu-list", "--all-tasks", settings["affinity"]] if vm.affinity else []
    arguments = [
        *("-name", f"{(vm.name or f'vm{vmid}').replace(',', ',,')},debug-threads=on"),
        "-no-shutdown",
        *_socket("qmp", node.var_run(vmid, "qmp")),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=qmp-event,path={node.base}/var/run/qmeventd.sock"),
        *("-mon", "chardev=qmp-event,mode=control"),
        *("-pidfile", node.var_run(vmid, "pid")),
        "-daemonize",
        *_processors(vm, settings, boot.accelerator),
        *("-nodefaults", "-vga", "none", "-display", "none"),
        *_memory(node, vmid, vm, boot.kind),
        *_drives(vm),
        *_balloon(vm),
        *("-accel", boot.accelerator.argument),
        *_boot(node, vmid, boot),
    ]
    if incoming:
        arguments += ["-incoming", "defer", "-S"]
    arguments += words(args)
    return [*taskset, str(node.path("usr/bin/kvm")), *arguments]


def hotplugged(vm: config.Machine, number: int, accelerator: Accelerator) -> dict[str, str | int]:
    """The device of the vCPU with this number, from 2 on: number K is vCPU K - 1."""
    return {
        "driver": f"{accelerator.cpu}-x86_64-cpu",
        "id": f"cpu{number}",
        "socket-id": (number - 1) // vm.cores,
        "core-id": (number - 1) % vm.cores,
        "thread-id": 0,
    }


def hotplugs_cpus(settings: Mapping[str, str]) -> bool:
    return "cpu" in settings.get("hotplug", "").split(",")


def _socket(name: str, path: str) -> tuple[str, str]:
    return "-chardev", f"socket,id={name},path={path},server=on,wait=off"


def _processors(vm: config.Machine, settings: Mapping[str, str], accelerator: Accelerator) -> Iterator[str]:
    most = vm.sockets * vm.cores
    hotplug = hotplugs_cpus(settings)
    first = 1 if hotplug else vm.vcpus
    yield from ("-smp", f"{first},sockets={vm.sockets},cores={vm.cores},maxcpus={most}")
    yield from ("-cpu", accelerator.cpu)
    if hotplug:
        for number in range(2, vm.vcpus + 1):
            device = hotplugged(vm, number, accelerator)
            driver = device.pop("driver")
            yield from (
                "-device",
                ",".join([str(driver), *(f"{key}={value}" for key, value in device.items())]),
            )


def _memory(node: Node, vmid: int, vm: config.Machine, kind: Kind) -> Iterator[str]:
    """Guest memory; where a ROM guest runs, its first part is a file that the host reads and writes, too."""
    yield from ("-m", str(vm.memory_mib))
    parts = list(_nodes(vm))
    if not parts and kind is Kind.ROM:
        yield from ("-object", _backend(node, vmid, "ram", vm.memory_mib, kind))
        yield from ("-machine", "type=pc,memory-backend=ram")
        return
    yield from ("-machine", "type=pc")
    for number, part in enumerate(parts):
        name = f"ram-node{number}"
        binding = ""
        if part.host_nodes:
            ranges = cpulist.format(part.host_nodes).split(",")
            binding = "".join(f",host-nodes={text}" for text in ranges) + f",policy={part.policy}"
        part_kind = kind if number == 0 else Kind.LINUX
        yield from ("-object", _backend(node, vmid, name, part.memory_mib, part_kind) + binding)
        cpus = "".join(f",cpus={text}" for text in cpulist.format(part.cpus).split(","))
        yield from ("-numa", f"node,nodeid={number}{cpus},memdev={name}")


def _backend(node: Node, vmid: int, name: str, mib: int, kind: Kind) -> str:
    if kind is Kind.ROM:
        return f"memory-backend-file,id={name},size={mib}M,mem-path={node.own(vmid, 'memory')},share=on"
    return f"memory-backend-ram,id={name},size={mib}M"


def _nodes(vm: config.Machine) -> Iterator[config.GuestNode]:
    """The guest's NUMA nodes: as written, else one a socket."""
    if not vm.numa:
        return
    if vm.guest_nodes:
        yield from vm.guest_nodes
        return
    for socket in range(vm.sockets):
        cpus = frozenset(range(socket * vm.cores, (socket + 1) * vm.cores))
        yield config.GuestNode(cpus, vm.memory_mib // vm.sockets)


def _drives(vm: config.Machine) -> Iterator[str]:
    """Empty disks for the drives with an iothread: the threads are what matters here."""
    for drive in vm.iothreads:
        number = drive.lstrip("abcdefghijklmnopqrstuvwxyz")
        yield from ("-drive", f"file=null-co://,format=raw,if=none,id=drive-{drive}")
        if drive.startswith("scsi"):
            yield from ("-object", f"iothread,id=iothread-virtioscsi{number}")
            yield from (
                "-device",
                f"virtio-scsi-pci,id=virtioscsi{number},iothread=iothread-virtioscsi{number}",
            )
            yield from ("-device", f"scsi-hd,bus=virtioscsi{number}.0,drive=drive-{drive},id={drive}")
        else:
            yield from ("-object", f"iothread,id=iothread-{drive}")
            yield from ("-device", f"virtio-blk-pci,drive=drive-{drive},id={drive},iothread=iothread-{drive}")


def _balloon(vm: config.Machine) -> tuple[str, ...]:
    return () if vm.balloon_mib == 0 else ("-device", "virtio-balloon-pci,id=balloon0")


def _boot(node: Node, vmid: int, boot: Boot) -> Iterator[str]:
    if boot.kind is Kind.ROM:
        yield from ("-bios", boot.files[0])
        return
    kernel, first_root = boot.files
    yield from ("-kernel", kernel, "-initrd", first_root, "-append", KERNEL_ARGUMENTS)
    yield from _socket("serial0", node.var_run(vmid, "serial0"))
    yield from ("-device", "isa-serial,chardev=serial0")
    yield from ("-chardev", f"file,id=console,path={node.own(vmid, 'console')}")
    yield from ("-device", "isa-serial,chardev=console")
