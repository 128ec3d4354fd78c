"""Of the machine: what sysfs and procfs say in numbers and in the kernel's own words.

A line with anything else in it stays out, so a file is as good as empty where somebody else wrote in it.
"""

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch

from pxsched.doctor.bundle import words
from pxsched.host import devices, interrupts
from pxsched.root import Root

CPU = "sys/devices/system/cpu"
PCI = "sys/bus/pci/devices"
GROUP = "{init.scope,lxc,lxc.monitor,machine.slice,qemu.slice,system.slice,user.slice}"

# One component of a path at a time; `*` never crosses a slash.
FILES = (
    f"{CPU}/{{online,present,possible,offline,isolated,nohz_full}}",
    f"{CPU}/smt/{{active,control}}",
    f"{CPU}/cpu[0-9]*/{{online,cpu_capacity}}",
    f"{CPU}/cpu[0-9]*/topology/*",
    f"{CPU}/cpu[0-9]*/cache/index*/{{level,type,size,id,shared_cpu_list,shared_cpu_map}}",
    f"{CPU}/cpu[0-9]*/cpufreq/{{scaling_*,cpuinfo_*,base_frequency,energy_performance_*,related_cpus}}",
    f"{CPU}/cpufreq/policy[0-9]*/{{scaling_*,cpuinfo_*,base_frequency,energy_performance_*,related_cpus}}",
    f"{CPU}/cpu[0-9]*/power/pm_qos_resume_latency_us",
    "sys/devices/system/node/{online,possible,has_cpu,has_memory}",
    "sys/devices/system/node/node[0-9]*/{cpulist,cpumap,distance,meminfo}",
    "sys/devices/system/node/node[0-9]*/hugepages/hugepages-[0-9]*kB/*",
    "sys/kernel/mm/hugepages/hugepages-[0-9]*kB/*",
    "sys/devices/{cpu_core,cpu_atom,cpu_lowpower}/cpus",
    f"{PCI}/*/{{class,vendor,device,numa_node,local_cpulist,sriov_numvfs,sriov_totalvfs,irq}}",
    "sys/fs/cgroup/{cgroup.controllers,cgroup.subtree_control,cpuset.cpus.effective,cpuset.mems.effective}",
    f"sys/fs/cgroup/{GROUP}/{{cgroup.controllers,cgroup.subtree_control,cgroup.events,cpuset.*,cpu.stat,cpu.pressure}}",
    "sys/fs/cgroup/lxc/[0-9]*/{cgroup.events,cpuset.*,cpu.stat,memory.numa_stat}",
    "sys/fs/cgroup/qemu.slice/[0-9]*.scope/{cpuset.*,cpu.stat,cpu.pressure,cpu.weight,memory.numa_stat}",
    "sys/kernel/mm/transparent_hugepage/{enabled,defrag}",
    "sys/module/kvm/parameters/halt_poll_ns",
    "sys/class/net/tap[0-9]*i[0-9]*/ifindex",
    "sys/class/net/tap[0-9]*i[0-9]*/queues/*/{rps_cpus,xps_cpus}",
    "proc/{cpuinfo,meminfo,stat,buddyinfo}",
    "proc/pressure/*",
    "proc/irq/default_smp_affinity",
    "proc/irq/[0-9]*/{smp_affinity_list,effective_affinity_list,node}",
    "proc/sys/kernel/{numa_balancing,sched_rt_runtime_us}",
)
# Names that somebody could have chosen are not among these.
_COMPONENT = re.compile(
    r"[a-z_]+|(?:cpu|node|policy|index|N)?\d+|[a-z]+_cpulist|(?:scaling|cpuinfo|energy|shared|nr|free|surplus|resv)_\w+"
    r"|hugepages-\d+kB|tap\d+i\d+|[rt]x-\d+|\d+\.scope|(?:init|system|user|machine|qemu)\.(?:slice|scope)|lxc\.monitor"
    r"|(?:cpuset|cgroup|cpu|memory)\.[a-z_.]+",
    re.ASCII,
)
# Links whose target's last component tells which device belongs to which.
LINKS = (f"{PCI}/*/physfn", f"{PCI}/*/virtfn[0-9]*")

_KERNEL_PARAMETERS = re.compile(
    r"(?:(?:isolcpus|nohz_full|rcu_nocbs|irqaffinity)=(?:(?:domain|managed_irq|nohz),)*[\d,:/-]+"
    r"|(?:intel_|amd_)?iommu=(?:on|off|pt|force)|mitigations=(?:auto|off)(?:,nosmt)?|nosmt(?:=force)?"
    r"|(?:maxcpus|nr_cpus|(?:default_)?hugepagesz?)=\d+[KMG]?|transparent_hugepage=(?:always|madvise|never)"
    r"|(?:intel|amd)_pstate=(?:active|passive|guided|disable)|numa=off|numa_balancing=(?:enable|disable)"
    r"|systemd\.unified_cgroup_hierarchy(?:=[01])?|cgroup_disable=(?:cpuset|memory|pressure|io|pids)|threadirqs"
    r"|preempt=(?:none|voluntary|full|lazy))",
    re.ASCII,
)
_VFIO = re.compile(r"vfio-(?:intx|msix?)(?:\[\d+\])?\([0-9a-f:.]+\)", re.ASCII)
_TAP = re.compile(r"tap\d+i\d+|[rt]x-\d+", re.ASCII)
_CHIP = re.compile(r"[A-Z-]{2,20}(?:-[0-9a-f]{4}:[0-9a-f:.]+)?", re.ASCII)


def files(root: Root) -> Iterator[tuple[str, str]]:
    """Names below the root, and what is told of them."""
    for pattern in FILES:
        for name in expand(root, pattern):
            text = words.kept(root.read(name) or "") if _is_plain(name) else ""
            if text:
                yield name, text
    for address in _addresses(root):
        for number in filter(str.isdecimal, root.list(f"{PCI}/{address}/msi_irqs")):
            yield f"{PCI}/{address}/msi_irqs/{number}", "msix\n"
    yield "proc/cmdline", _kernel_parameters(root.read("proc/cmdline") or "")
    yield "proc/interrupts", _interrupts(root.read("proc/interrupts") or "")
    yield "proc/sys/kernel/osrelease", _version(root.read("proc/sys/kernel/osrelease") or "")


def links(root: Root) -> Iterator[tuple[str, str]]:
    """Links below the root, and where they lead."""
    for pattern in LINKS:
        for name in expand(root, pattern):
            try:
                target = os.path.basename(os.readlink(root.path(name)))
            except OSError:
                continue
            if _is_plain(name) and devices.FUNCTION.fullmatch(target):
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


def _is_plain(name: str) -> bool:
    return all(
        _COMPONENT.fullmatch(part) or devices.FUNCTION.fullmatch(part) or re.fullmatch(r"virtfn\d+", part)
        for part in name.split("/")
    )


def is_plain_name(text: str) -> bool:
    """Whether it names a device by its address, an interrupt of vfio's, a tap or a queue."""
    return any(form.fullmatch(text) for form in (devices.FUNCTION, _VFIO, _TAP))


def _addresses(root: Root) -> list[str]:
    return [name for name in root.list(PCI) if devices.FUNCTION.fullmatch(name)]


def _kernel_parameters(text: str) -> str:
    return " ".join(word for word in text.split() if _KERNEL_PARAMETERS.fullmatch(word))


def _version(text: str) -> str:
    match = re.match(r"\d+\.\d+(?:\.\d+)?(?:-\d+)?", text, re.ASCII)
    return match[0] if match else ""


def _interrupts(text: str) -> str:
    """The table with vfio's names, which hold vector and address; those of the host's drivers are `host`."""
    table = interrupts.parse(text)
    lines = ["     " + " ".join(f"CPU{cpu}" for cpu in table.cpus)]
    for row in table.rows:
        chip = row.chip if _CHIP.fullmatch(row.chip) else "chip"
        names = (name if _VFIO.fullmatch(name) else "host" for name in row.actions)
        counts = " ".join(map(str, row.counts))
        lines.append(f"{row.number:4}: {counts} {chip} 0-edge {', '.join(names)}")
    return "".join(f"{line}\n" for line in lines)
