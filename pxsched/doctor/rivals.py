"""Other programs on the node that turn the same knobs: each pass puts it right again, and they do, too."""

from collections.abc import Iterator, Set
from typing import NamedTuple

from pxsched.doctor.finding import Finding, Level, Subject

UNIT_DIR = "etc/systemd/system"


class Rival(NamedTuple):
    """A program that turns the same knobs. process: what the kernel calls it; unit: what an enabled one that
    leaves no process behind is known by.
    """

    name: str
    does: str
    remedy: str
    process: str = ""
    unit: str = ""

    def runs(self, processes: Set[str | None], units: Set[str]) -> bool:
        """processes: their names, as the kernel cuts them; units: those that something wants."""
        return (bool(self.process) and self.process[:COMM_LENGTH] in processes) or self.unit in units


# TASK_COMM_LEN less its end (include/linux/sched.h).
COMM_LENGTH = 15
RIVALS = (
    Rival("irqbalance", "moves interrupts", "systemctl disable --now irqbalance", "irqbalance"),
    Rival(
        "tuned",
        "sets governors and affinities",
        "tuned-adm off, or a profile without [cpu] and [scheduler]",
        "tuned",
    ),
    Rival("numad", "moves processes between NUMA nodes", "systemctl disable --now numad", "numad"),
    Rival("auto-cpufreq", "sets governors", "auto-cpufreq --remove", "auto-cpufreq"),
    Rival(
        "power-profiles-daemon",
        "sets governors and energy preferences",
        "systemctl disable --now power-profiles-daemon",
        "power-profiles-daemon",
    ),
    Rival("tlp", "sets governors and energy preferences", "systemctl disable --now tlp", unit="tlp.service"),
    Rival(
        "proxmox-scheduler",
        "pins vCPUs, moves interrupts and sets governors",
        "apt remove proxmox-scheduler; its settings file stays",
        "proxmox-scheduler",
    ),
    Rival(
        "proxmox-cpu-affinity",
        "sets the affinity of VMs",
        "proxmox-cpu-affinity hookscript disable-all; apt remove proxmox-cpu-affinity",
        "proxmox-cpu-affinity-service",
    ),
)


def rivals(subject: Subject) -> Iterator[Finding]:
    """Those that run or are enabled, and the kernel's own moving of memory."""
    root = subject.root
    processes = {root.read(f"proc/{name}/comm") for name in root.list("proc") if name.isdecimal()}
    wanted = {unit for name in root.list(UNIT_DIR) if name.endswith(".wants")
              for unit in root.list(f"{UNIT_DIR}/{name}")}  # fmt: skip
    running = [rival for rival in RIVALS if rival.runs(processes, wanted)]
    for rival in running:
        text = f"{rival.name} {'runs' if rival.process else 'is enabled'} and {rival.does}, against us"
        yield Finding(Level.WARN, "other daemons", text, rival.remedy)
    if not running:
        yield Finding(Level.OK, "other daemons", "none that is known works against us")
    if root.read("proc/sys/kernel/numa_balancing") == "1" and len(subject.topology.nodes) > 1:
        text = "automatic NUMA balancing is on: it moves pages of VMs whose vCPUs are pinned for nothing"
        remedy = "sysctl kernel.numa_balancing=0 when all VMs are placed"
        yield Finding(Level.NOTE, "other daemons", text, remedy)


CHECKS = (rivals,)
