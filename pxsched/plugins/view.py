"""What plugins see and what they say. A plugin is a module with one or both of

    def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]      knobs that serve one VM
    def of_node(host: HostView) -> Iterator[Setting]                knobs that serve all claims together

Both are pure: everything that had to be read is in the views.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pxsched.guest.config import Machine
from pxsched.guest.process import Thread
from pxsched.host.devices import Device
from pxsched.host.interrupts import Interrupt
from pxsched.host.irqbalance import Running
from pxsched.host.links import Tap
from pxsched.host.topology import Topology
from pxsched.knobs.knob import Knob
from pxsched.ledger import Claim
from pxsched.policy import NodeSettings


@dataclass(frozen=True, slots=True)
class Setting:
    """A knob and the value it should have. owner: the VMID it serves, or ledger.NODE.

    inherited: the value it would have had without us, where that is not what it has now.
    """

    knob: Knob
    want: str
    owner: int
    plugin: str
    inherited: str | None = None


@dataclass(frozen=True, slots=True)
class VmView:
    """One VM that runs or is about to. threads: QEMU's, empty before it runs.

    devices: passed through; interrupts: theirs, as many as the guest's drivers have enabled.
    taps: its network devices on the host.
    """

    claim: Claim
    machine: Machine
    threads: tuple[Thread, ...] = ()
    devices: tuple[Device, ...] = ()
    interrupts: tuple[Interrupt, ...] = ()
    taps: tuple[Tap, ...] = ()

    @property
    def vmid(self) -> int:
        return self.claim.vmid


@dataclass(frozen=True, slots=True)
class HostView:
    """The node. claims: of all VMs we placed, this one included. housekeeping: CPUs kept for host tasks.

    originals: the journal's original values by knob key. irqbalance: None where it does not run.
    interrupts, default_irq_mask: the host's own, read only when `device_interrupts` is set.
    """

    topology: Topology
    node: NodeSettings = NodeSettings()
    housekeeping: frozenset[int] = frozenset()
    claims: Mapping[int, Claim] = field(default_factory=dict)
    originals: Mapping[str, str] = field(default_factory=dict)
    irqbalance: Running | None = None
    interrupts: tuple[Interrupt, ...] = ()
    default_irq_mask: str = ""
