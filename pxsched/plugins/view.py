"""What plugins see and what they say. A plugin is a module with one or both of

    def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]      knobs that serve one VM
    def of_node(host: HostView) -> Iterator[Setting]                knobs that serve all claims together

Both are pure: everything that had to be read is in the views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the hook loads only what a VM has
    from collections.abc import Mapping

    from pxsched.guest.config import Machine
    from pxsched.guest.process import Process, Thread
    from pxsched.host.devices import Device
    from pxsched.host.frequency import FrequencyPolicy
    from pxsched.host.interrupts import Interrupt
    from pxsched.host.irqbalance import Running
    from pxsched.host.links import Tap
    from pxsched.host.memory import NodeMemory
    from pxsched.host.topology import Topology
    from pxsched.knobs.knob import Knob
    from pxsched.ledger.claim import Claim

from pxsched.settings.policy import NodeSettings
from pxsched.value import NOTHING, Value


class Setting(NamedTuple):
    """A knob and the value it should have. owner: the VMID it serves, or ledger.NODE.

    inherited: the value it would have had without us, where that is not what it has now.
    A pass makes thousands, which a tuple is quicker at than a dataclass.
    """

    knob: Knob
    want: str
    owner: int
    plugin: str
    inherited: str | None = None


class VmView(Value):
    """One VM that runs or is about to. threads: QEMU's, empty before it runs.

    devices: passed through; interrupts: theirs, as many as the guest's drivers have enabled.
    taps: its network devices on the host. memory_bytes: by node; None when it was not looked at.
    """

    claim: Claim
    machine: Machine
    threads: tuple[Thread, ...] = ()
    devices: tuple[Device, ...] = ()
    interrupts: tuple[Interrupt, ...] = ()
    taps: tuple[Tap, ...] = ()
    memory_bytes: Mapping[int, int] | None = None

    @property
    def vmid(self) -> int:
        return self.claim.vmid


class Stranger(Value):
    """A running VM that we do not place. masks: the CPUs each thread may use, by thread id."""

    vmid: int
    process: Process
    threads: tuple[Thread, ...]
    masks: Mapping[int, frozenset[int]]


class HostView(Value):
    """The node. claims: of the VMs that matter to more than themselves (`Claim.felt`).

    housekeeping: CPUs kept for host tasks.
    originals: the journal's original values by knob key. irqbalance: None where it does not run.
    interrupts, default_irq_mask: the host's own, read only when `device_interrupts` is set.
    frequency: the policies that matter to a claim's wishes. memory: empty when it was not looked at.
    strangers: looked at only by a pass over all VMs, and when they are to be confined.
    """

    topology: Topology
    node: NodeSettings = NodeSettings()
    housekeeping: frozenset[int] = frozenset()
    claims: Mapping[int, Claim] = NOTHING
    originals: Mapping[str, str] = NOTHING
    irqbalance: Running | None = None
    interrupts: tuple[Interrupt, ...] = ()
    default_irq_mask: str = ""
    frequency: tuple[FrequencyPolicy, ...] = ()
    memory: tuple[NodeMemory, ...] = ()
    strangers: tuple[Stranger, ...] = ()
