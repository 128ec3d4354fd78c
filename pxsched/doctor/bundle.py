"""A machine as a file: what the program reads of it, so that a bug report can be replayed with --root.

Nothing of tenants goes in: of a VM's configuration only numbers that the parser understood, under a node name
of ours; of the kernel's command line only parameters that bear on scheduling; no process, name or address.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatch

from pxsched.doctor.finding import Finding, Subject
from pxsched.errors import UserError
from pxsched.guest.config import GuestNode, Machine
from pxsched.host import cpulist
from pxsched.ledger import file as ledger
from pxsched.optin.rules import is_ours
from pxsched.proxmox.cluster import Guest
from pxsched.root import Root
from pxsched.settings import files as settings
from pxsched.value import plain

NODE = "node"
CPU = "sys/devices/system/cpu"
PCI = "sys/bus/pci/devices"

# One component of a path at a time; `*` never crosses a slash.
FILES = (
    f"{CPU}/{{online,present,possible,offline,isolated,nohz_full}}",
    f"{CPU}/smt/{{active,control}}",
    f"{CPU}/vulnerabilities/*",
    f"{CPU}/cpu[0-9]*/{{online,cpu_capacity}}",
    f"{CPU}/cpu[0-9]*/topology/*",
    f"{CPU}/cpu[0-9]*/cache/index*/{{level,type,size,id,shared_cpu_list,shared_cpu_map}}",
    f"{CPU}/cpu[0-9]*/cpufreq/{{scaling_*,cpuinfo_*,base_frequency,energy_performance_*,related_cpus}}",
    f"{CPU}/cpu[0-9]*/power/pm_qos_resume_latency_us",
    "sys/devices/system/node/{online,possible,has_cpu,has_memory}",
    "sys/devices/system/node/node[0-9]*/{cpulist,cpumap,distance,meminfo}",
    "sys/devices/system/node/node[0-9]*/hugepages/*/*",
    "sys/devices/{cpu_core,cpu_atom}/cpus",
    f"{PCI}/*/{{class,vendor,device,numa_node,local_cpulist,sriov_numvfs,sriov_totalvfs,irq}}",
    f"{PCI}/*/msi_irqs/*",
    "sys/fs/cgroup/{cgroup.controllers,cgroup.subtree_control,cpuset.cpus.effective}",
    "sys/fs/cgroup/*.slice/{cgroup.controllers,cgroup.subtree_control,cpuset.*,cpu.stat,cpu.pressure}",
    "sys/fs/cgroup/qemu.slice/*.scope/{cpuset.*,cpu.stat,cpu.pressure,cpu.weight}",
    "sys/kernel/mm/transparent_hugepage/{enabled,defrag}",
    "sys/module/kvm/parameters/halt_poll_ns",
    "proc/{interrupts,meminfo,version,stat}",
    "proc/irq/default_smp_affinity",
    "proc/irq/*/{smp_affinity_list,effective_affinity_list,node}",
    "proc/sys/kernel/{osrelease,numa_balancing}",
)
# Links whose target's last component tells which device belongs to which.
LINKS = (f"{PCI}/*/physfn", f"{PCI}/*/virtfn*")

_KERNEL_PARAMETERS = re.compile(
    r"(?:isolcpus|nohz_full|rcu_nocbs|irqaffinity|(?:intel_|amd_)?iommu|mitigations|nosmt|maxcpus|nr_cpus"
    r"|(?:default_)?hugepagesz?|transparent_hugepage|(?:intel|amd)_pstate|numa(?:_balancing)?"
    r"|systemd\.unified_cgroup_hierarchy|cgroup_disable|threadirqs|preempt)(?:=[\w.,:/-]*)?",
    re.ASCII,
)


def write(root: Root, path: str, findings: list[Finding]) -> int:
    """Writes the bundle; returns the number of files in it. Raises UserError when it cannot be written."""
    count = 0
    try:
        with tarfile.open(path, "w:gz") as tar:
            for name, data in _contents(root, findings):
                count += 1
                _add(tar, name, data)
            for name, target in _links(root):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, target
                tar.addfile(link)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))


def _contents(root: Root, findings: list[Finding]) -> Iterator[tuple[str, bytes]]:
    for pattern in FILES:
        for name in expand(root, pattern):
            data = root.read_bytes(name)
            if data is not None:
                yield name, data
    yield "proc/cmdline", _kernel_parameters(root.read("proc/cmdline") or "").encode()
    subject = Subject(root)
    for guest in subject.here:
        text = _numbers(guest, subject.machines[guest.vmid])
        yield f"etc/pve/nodes/{NODE}/qemu-server/{guest.vmid}.conf", text.encode()
    for name in (settings.CLUSTER_FILE, settings.NODE_FILE, settings.DEFAULT_FILE):
        text = root.read(name) or ""
        yield name, "".join(f"{line}\n" for line in _without_comments(text)).encode()
    if root.exists(ledger.FILE):
        yield ledger.FILE, root.read_bytes(ledger.FILE) or b""
    report = {"schema": 1, "findings": [plain(finding) for finding in findings]}
    yield "doctor.json", json.dumps(report, indent=1).encode()


def _links(root: Root) -> Iterator[tuple[str, str]]:
    import os

    yield "etc/pve/local", f"nodes/{NODE}"
    yield "etc/pve/qemu-server", f"nodes/{NODE}/qemu-server"
    for pattern in LINKS:
        for name in expand(root, pattern):
            try:
                target = os.path.basename(os.readlink(root.path(name)))
            except OSError:
                continue
            yield name, f"../{target}"


def expand(root: Root, pattern: str) -> list[str]:
    """The files below the root that a pattern of `*`, `[...]` and `{one,other}` means."""
    return sorted({name for one in _alternatives(pattern) for name in _matches(root, "", one.split("/"))})


def _alternatives(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    choices = match[1].split(",")
    return [name for choice in choices for name in _alternatives(pattern.replace(match[0], choice, 1))]


def _matches(root: Root, base: str, parts: list[str]) -> Iterator[str]:
    first, *rest = parts
    if any(char in first for char in "*[?"):
        names = [name for name in root.list(base) if fnmatch(name, first)]
    else:
        names = [first]
    for name in names:
        path = f"{base}/{name}" if base else name
        if rest:
            yield from _matches(root, path, rest)
        elif root.exists(path):
            yield path


def _kernel_parameters(text: str) -> str:
    return " ".join(word for word in text.split() if _KERNEL_PARAMETERS.fullmatch(word))


def _numbers(guest: Guest, machine: Machine) -> str:
    """The configuration rebuilt from what the parser understood, so that no text of a tenant is in it."""
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
    devices = [pci for pci in machine.hostpci if pci.addresses]
    text += [f"hostpci{pci.number}: {';'.join(pci.addresses)}" for pci in devices]
    if is_ours(guest.hookscript):
        text.append("hookscript: local:snippets/pxsched")
    if machine.template:
        text.append("template: 1")
    return "".join(f"{line}\n" for line in text)


def _guest_node(node: GuestNode) -> str:
    parts = [f"cpus={cpulist.format(node.cpus).replace(',', ';')}", f"memory={node.memory_mib}"]
    if node.host_nodes:
        parts.append(f"hostnodes={cpulist.format(node.host_nodes).replace(',', ';')}")
    return ",".join([*parts, *([f"policy={node.policy}"] if node.policy else [])])


def _without_comments(text: str) -> Iterator[str]:
    """Lines with a setting or a table; comments may say anything."""
    for line in text.splitlines():
        bare = re.sub(r"#[^\"']*$", "", line).rstrip()
        if bare.strip() and not bare.lstrip().startswith("#"):
            yield bare
