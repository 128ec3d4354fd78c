"""Of VMs: the numbers of their configurations, and of their processes what places them.

A configuration is rebuilt from what the parser understood, a command line from the VMID and the devices; of
threads only names that QEMU and the kernel give them are kept.
"""

import re
from collections.abc import Iterator, Mapping

from pxsched.doctor.finding import Subject
from pxsched.guest import process
from pxsched.guest.config import GuestNode, Machine
from pxsched.guest.hookscript import is_ours
from pxsched.guest.passthrough import of_vm
from pxsched.guest.process import Process
from pxsched.host import cpulist, devices
from pxsched.proxmox.cluster import Guest
from pxsched.root import Root

NODE = "node"
CONFIGS = f"etc/pve/nodes/{NODE}/qemu-server"
_THREAD = re.compile(
    r"kvm|CPU \d{1,5}/(?:KVM|TCG)|vhost-\d{1,10}|IO (?:mon_iothread|iothread\d{0,5})|call_rcu|worker"
    r"|vnc_worker",
    re.ASCII,
)
_STAT = re.compile(r"[A-Z](?: -?\d+){20,60}", re.ASCII)


def files(subject: Subject, profiles: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names below the root, and what is told of them. profiles: what each profile is called in the bundle."""
    for guest in subject.here:
        tags = [tag.removeprefix("pxsched-") for tag in subject.machines[guest.vmid].tags]
        chosen = [profiles[tag] for tag in tags if tag in profiles]
        yield f"{CONFIGS}/{guest.vmid}.conf", _numbers(guest, subject.machines[guest.vmid], chosen)
    for vmid in process.running(subject.root):
        found = process.find(subject.root, vmid)
        if found is not None:
            yield from _process(subject.root, vmid, found)


def _numbers(guest: Guest, machine: Machine, profiles: list[str]) -> str:
    lines = {
        "sockets": machine.sockets,
        "cores": machine.cores,
        "vcpus": min(machine.vcpus, machine.sockets * machine.cores),
        "memory": machine.memory_mib,
        "shares": machine.shares,
        "cpuunits": machine.weight,
        "numa": int(machine.numa),
    }
    text = [f"{key}: {value}" for key, value in lines.items()]
    if machine.balloon_mib is not None:
        text.append(f"balloon: {machine.balloon_mib}")
    if machine.cpu_limit:
        text.append(f"cpulimit: {machine.cpu_limit:g}")
    if machine.affinity:
        text.append(f"affinity: {cpulist.format_ordered(machine.affinity)}")
    if machine.smp is not None:
        text.append(f"args: -smp {machine.smp}")
    if machine.hugepage_mib is not None:
        text.append(f"hugepages: {machine.hugepage_mib or 'any'}")
    text += [f"numa{number}: {_guest_node(node)}" for number, node in enumerate(machine.guest_nodes)]
    for pci in machine.hostpci:
        addresses = [
            one for one in pci.addresses if devices.FUNCTION.fullmatch(one) or devices.SLOT.fullmatch(one)
        ]
        text += [f"hostpci{pci.number}: {';'.join(addresses)}"] if addresses else []
    if is_ours(guest.hookscript):
        text.append("hookscript: local:snippets/pxsched")
    if machine.template:
        text.append("template: 1")
    if profiles:
        text.append("tags: " + ";".join(f"pxsched-{name}" for name in profiles))
    return "".join(f"{line}\n" for line in text)


def _guest_node(node: GuestNode) -> str:
    parts = [f"cpus={cpulist.format(node.cpus).replace(',', ';')}", f"memory={node.memory_mib}"]
    if node.host_nodes:
        parts.append(f"hostnodes={cpulist.format(node.host_nodes).replace(',', ';')}")
    policy = node.policy if node.policy in ("bind", "interleave", "preferred") else ""
    return ",".join([*parts, *([f"policy={policy}"] if policy else [])])


def _process(root: Root, vmid: int, found: Process) -> Iterator[tuple[str, str]]:
    base = f"proc/{found.pid}"
    yield f"run/qemu-server/{vmid}.pid", f"{found.pid}\n"
    words = ["kvm", "-id", str(vmid), "-pidfile", f"/var/run/qemu-server/{vmid}.pid"]
    for device in of_vm(root, vmid, Machine(), found):
        words += ["-device", f"vfio-pci,host={device.address}"]
    yield f"{base}/cmdline", "\0".join([*words, ""])
    yield f"{base}/stat", _stat(root, base, found.pid, "kvm", found.start_ticks)
    for thread in process.threads(root, found):
        name = thread.name if _THREAD.fullmatch(thread.name) else "thread"
        task = f"{base}/task/{thread.tid}"
        stat = _stat(root, task, thread.tid, name, thread.start_ticks)
        counters = (root.read(f"{task}/schedstat") or "").split()
        yield f"{task}/stat", stat
        if counters and all(map(str.isdecimal, counters)):
            yield f"{task}/schedstat", " ".join(counters) + "\n"
        if thread.tid != found.pid:
            yield f"proc/{thread.tid}/stat", stat
        yield f"proc/{thread.tid}/comm", f"{name}\n"
        cpus = process.allowed(root, thread.tid)
        if cpus and re.fullmatch(r"[\d,-]+", cpus, re.ASCII):
            yield f"proc/{thread.tid}/status", f"Cpus_allowed_list:\t{cpus}\n"


def _stat(root: Root, base: str, tid: int, name: str, start_ticks: int) -> str:
    """proc(5) stat with a name of ours."""
    tail = (root.read(f"{base}/stat") or "").rpartition(")")[2].strip()
    if not _STAT.fullmatch(tail):
        tail = " ".join(["S", *["0"] * 18, str(start_ticks), "0"])
    return f"{tid} ({name}) {tail}\n"
