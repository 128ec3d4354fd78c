"""CPUs that the kernel keeps out of load balancing (isolcpus=domain): a thread stays there where it is put.

Rules: Documentation/admin-guide/kernel-parameters.txt, isolcpus: nothing but a change of its affinity moves a
task there or away.
"""

from collections.abc import Sequence

from pxsched.placement import obstacles
from pxsched.placement.machine import Machine, bits, mask_of, set_of
from pxsched.placement.occupancy import Occupancy
from pxsched.placement.request import Request

Vcpus = tuple[frozenset[int], ...]


def apart(
    machine: Machine, occupied: Occupancy, request: Request, vcpus: Sequence[frozenset[int]]
) -> tuple[Vcpus, list[str]]:
    """One of these CPUs for each vCPU, where they suffice, and what is to be said; else all as it is.

    vcpus: the CPUs that each may use.
    """
    alone = mask_of(frozenset().union(*vcpus)) & machine.isolated
    if not alone:
        return tuple(vcpus), []
    cause = f"CPUs {obstacles.cpus(alone)} are isolated from the kernel's load balancing (isolcpus)"
    own = _one_each(occupied, vcpus, alone)
    if own is not None:
        return own, [
            f"warning: {cause}: each vCPU of VM {request.vmid} is put on one of its own, for none would ever"
            f" leave the first it is on"
        ]
    return tuple(vcpus), [
        f"warning: {cause}: vCPUs of VM {request.vmid} that float there will all stay on one CPU",
        'list as many CPUs as the VM has vCPUs, set class = "dedicated", or boot without isolcpus',
    ]


def _one_each(occupied: Occupancy, vcpus: Sequence[frozenset[int]], alone: int) -> Vcpus | None:
    """Those that fewest others use first, in order. None where one vCPU would get none."""
    crowd = {cpu: occupied.demand(1 << cpu) + (occupied.taken >> cpu & 1) for cpu in bits(alone)}
    found = []
    for allowed in vcpus:
        best = min((cpu for cpu in allowed if cpu in crowd), key=lambda cpu: (crowd[cpu], cpu), default=None)
        if best is None:
            return None
        del crowd[best]
        found.append(frozenset((best,)))
    return tuple(found)


def floating(machine: Machine, cpus: frozenset[int]) -> frozenset[int]:
    """Those of the CPUs among which threads float."""
    return cpus - set_of(machine.isolated)
