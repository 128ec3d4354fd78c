"""The entry to placement: one request, one answer, whatever the VM's class. A pure function."""

from collections.abc import Sequence

from pxsched.placement.request import EXCLUSIVE, Holding, Host, Placement, Refused, Request, VmClass


def place(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """Where the VM belongs. The order of `holdings` does not matter; a holding of the VM itself is ignored.

    Raises Refused when a rule keeps it from being placed.
    """
    if request.vcpus < 1:
        raise Refused(f"{request.vcpus} vCPUs: a VM has at least one")
    # Imported here, for the hook starts once a VM and needs one of them.
    if request.vm_class is VmClass.DEDICATED:
        from pxsched.placement.dedicated import place_dedicated

        return place_dedicated(host, holdings, request)
    if request.vm_class is VmClass.SHARED:
        from pxsched.placement.shared import place_shared

        return place_shared(host, holdings, request)
    from pxsched.placement.fixed import place_constrained, place_pinned

    pinned = request.vm_class is VmClass.PINNED
    return (place_pinned if pinned else place_constrained)(host, holdings, request)


def rehome(host: Host, holdings: Sequence[Holding], request: Request) -> Placement | None:
    """A new home for a running shared VM whose home lost CPUs to a dedicated one; None when it is still fine.

    The VM's `previous` placement is its present home.
    """
    before = request.previous
    if request.vm_class is not VmClass.SHARED or before is None:
        return None
    owned = frozenset[int]().union(
        *(
            holding.cpus
            for holding in holdings
            if holding.vmid != request.vmid and holding.vm_class in EXCLUSIVE
        )
    )
    if before.cpus and not before.cpus & owned and before.cpus <= host.topology.online:
        return None
    return place(host, holdings, request)
