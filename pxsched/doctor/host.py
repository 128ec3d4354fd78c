"""Checks of the machine and its kernel. Each reads a few files and says what it found."""

import re
from collections.abc import Iterator

from pxsched.doctor.finding import Finding, Level, Subject, some, vms
from pxsched.host import cpulist
from pxsched.settings.policy import Notify

CPU_DIR = "sys/devices/system/cpu"


def versions(subject: Subject) -> Iterator[Finding]:
    """Proxmox from dpkg's status, the kernel from /proc."""
    status = subject.root.read("var/lib/dpkg/status") or ""
    found = {}
    for name in ("pve-manager", "qemu-server", "pve-qemu-kvm", "proxmoxer"):
        package = f"python3-{name}" if name == "proxmoxer" else name
        match = re.search(rf"^Package: {package}\n(?:.+\n)*?Version: (\S+)", status, re.MULTILINE)
        if match:
            found[name] = match[1]
    kernel = subject.root.read("proc/sys/kernel/osrelease") or "unknown"
    said = ", ".join(f"{name} {version}" for name, version in found.items())
    major = re.match(r"\d+", found.get("pve-manager", ""))
    if major is None:
        text = f"no Proxmox VE here; kernel {kernel}"
        yield Finding(Level.NOTE, "versions", text, "fine for a sandbox; install on Proxmox VE 8 or 9")
    elif int(major[0]) < 8:
        yield Finding(Level.BAD, "versions", f"{said}; kernel {kernel}", "Proxmox VE 8 or 9 is needed")
    else:
        yield Finding(Level.OK, "versions", f"{said}; kernel {kernel}")


def cgroups(subject: Subject) -> Iterator[Finding]:
    controllers = subject.root.read("sys/fs/cgroup/cgroup.controllers")
    if controllers is None:
        remedy = "remove systemd.unified_cgroup_hierarchy=0 from the kernel's command line"
        yield Finding(
            Level.WARN, "cgroups", "version 1 or mixed: memory and isolation stay as they are", remedy
        )
    elif "cpuset" not in controllers.split():
        text = "version 2 without the cpuset controller"
        remedy = "remove cgroup_disable=cpuset from the kernel's command line"
        yield Finding(Level.WARN, "cgroups", text, remedy)
    else:
        yield Finding(Level.OK, "cgroups", "version 2 with cpuset")


def topology(subject: Subject) -> Iterator[Finding]:
    machine = subject.topology
    for warning in machine.warnings:
        yield Finding(Level.WARN, "topology", warning, "a firmware update may mend its tables")
    offline = sorted(machine.cpus.keys() - machine.online)
    text = f"{len(machine.online)} CPUs, {len(machine.l3s)} L3 groups, {len(machine.nodes)} NUMA nodes"
    if offline:
        text += f"; offline: {cpulist.format(offline)}"
    yield Finding(Level.OK, "topology", text)
    if machine.isolated:
        text = f"isolcpus={cpulist.format(machine.isolated)}: the kernel does not balance threads on them"
        remedy = "only dedicated and pinned VMs profit; `isolation` in [node] does it while VMs run"
        yield Finding(Level.NOTE, "topology", text, remedy)


def governor(subject: Subject) -> Iterator[Finding]:
    """Whether the governors that settings name exist. Where there are none at all, `performance` is no fault:
    the settings that come with the program name it.
    """
    wanted = {subject.settings.defaults.governor}
    wanted |= {str(profile.overlay.get("governor", "")) for profile in subject.settings.profiles.values()}
    wanted |= {str(overlay.get("governor", "")) for overlay in subject.settings.vms.values()}
    wanted |= {subject.settings.node.governor_free}
    wanted.discard("")
    first = f"{CPU_DIR}/cpu{min(subject.topology.online)}/cpufreq"
    driver = subject.root.read(f"{first}/scaling_driver")
    if driver is None:
        level = Level.WARN if wanted - {"performance"} else Level.NOTE if wanted else Level.OK
        remedy = "turn on frequency control in the firmware, or unset the governor" if wanted else ""
        yield Finding(level, "governor", "no frequency driver: the firmware decides", remedy)
        return
    offered = (subject.root.read(f"{first}/scaling_available_governors") or "").split()
    unknown = sorted(wanted - set(offered))
    if unknown:
        remedy = f"the driver {driver} offers {', '.join(offered)}"
        yield Finding(Level.WARN, "governor", f"there is no governor {', '.join(unknown)}", remedy)
    else:
        now = subject.root.read(f"{first}/scaling_governor") or "unknown"
        yield Finding(Level.OK, "governor", f"driver {driver}, now {now}; offers {', '.join(offered)}")


def security(subject: Subject) -> Iterator[Finding]:
    """SMT and what the kernel says about leaks between siblings."""
    root = subject.root
    smt = any(len(cpu.siblings) > 1 for cpu in subject.topology.cpus.values())
    directory = f"{CPU_DIR}/vulnerabilities"
    texts = {name: root.read(f"{directory}/{name}") or "" for name in root.list(directory)}
    leaky = [name for name, text in texts.items() if "SMT vulnerable" in text]
    bare = [name for name, text in texts.items() if text.startswith("Vulnerable")]
    if smt and leaky:
        text = f"siblings of a core can leak to each other ({some(leaky)})"
        remedy = 'smt = "isolate" or "require" keeps VMs of different tenants off the same core'
        yield Finding(Level.NOTE, "SMT", text, remedy)
    else:
        yield Finding(Level.OK, "SMT", "on" if smt else "off, or none")
    if bare:
        text = f"not mitigated: {some(bare)}"
        remedy = "update kernel and microcode, or leave it where guests are trusted"
        yield Finding(Level.NOTE, "SMT", text, remedy)


def passthrough(subject: Subject) -> Iterator[Finding]:
    """IOMMU, and devices far from their VM's CPUs."""
    users = [guest for guest in subject.here if subject.machines[guest.vmid].hostpci]
    groups = subject.root.list("sys/kernel/iommu_groups")
    if users and not groups:
        text = f"no IOMMU, but VMs {vms(users)} pass devices through"
        remedy = "turn on VT-d or AMD-Vi in the firmware; intel_iommu=on before kernel 6.8"
        yield Finding(Level.BAD, "passthrough", text, remedy)
    elif users:
        yield Finding(Level.OK, "passthrough", f"{len(groups)} IOMMU groups")
    for guest in users:
        yield from _remote_devices(subject, guest.vmid)


def _remote_devices(subject: Subject, vmid: int) -> Iterator[Finding]:
    from pxsched.host import devices

    claim = subject.ledger.claims.get(vmid)
    if claim is None:
        return
    for pci in subject.machines[vmid].hostpci:
        for address in (found for item in pci.addresses for found in devices.expand(subject.root, item)):
            node = devices.node_of(subject.root, address)
            if node is not None and claim.placement.nodes and node not in claim.placement.nodes:
                where = cpulist.format(claim.placement.nodes)
                text = f"VM {vmid} is on node {where}, its device {address} on node {node}"
                remedy = f'a function on node {where}, or `nodes = "{node}"` in [vm.{vmid}]'
                yield Finding(Level.WARN, "passthrough", text, remedy)


def mail(subject: Subject) -> Iterator[Finding]:
    """Whether what root is to be told can be sent."""
    from pxsched.monitor.mail import SENDMAIL, possible

    if subject.settings.node.notify is not Notify.MAIL:
        return
    if possible(subject.root):
        yield Finding(Level.OK, "mail", f"root is told by /{SENDMAIL}")
    else:
        text = f'notify = "mail" in [node], and there is no /{SENDMAIL}: nobody is told'
        yield Finding(Level.WARN, "mail", text, "install a program that has one, such as Debian's postfix")


CHECKS = (versions, cgroups, topology, governor, security, passthrough, mail)
