"""What `plan`, `status` and `doctor` say where a guest and its host disagree in a way that costs."""

from collections.abc import Iterable, Iterator

from pxsched.errors import UserError
from pxsched.ledger.claim import Claim
from pxsched.node.sighting import Node
from pxsched.placement.request import EXCLUSIVE, Placement
from pxsched.settings.policy import Policy, Shaping
from pxsched.shape.differences import summary
from pxsched.shaping import look as looking
from pxsched.shaping.look import Look


def of_placement(node: Node, placement: Placement, policy: Policy, *, running: bool) -> Look | None:
    """A look at a VM with CPUs of its own; None where there is nothing to say, or nobody wants to know."""
    if policy.shape is Shaping.OFF or placement.vm_class not in EXCLUSIVE:
        return None
    try:
        file = looking.read(node.root, placement.vmid)
    except UserError:
        return None  # it migrates: its configuration is still the source's
    found = looking.look(node.root, node.topology, placement.vmid, file, placement, running=running)
    return found if found.differences and (found.changes or found.shaped) else None


def of_claims(node: Node, claims: Iterable[Claim]) -> Iterator[Look]:
    """Looks at the VMs that hold CPUs of their own, as far as there is something to say."""
    for claim in claims:
        found = of_placement(node, claim.placement, claim.policy, running=claim.process is not None)
        if found is not None:
            yield found


def line(found: Look) -> str:
    """One sentence with what to do about it."""
    assert found.seen is not None and found.real is not None
    told = "was told of" if found.shaped else "sees"
    return (
        f"its guest {told} {summary(found.seen)}, and it has {summary(found.real)}"
        f" (pxsched shape {found.vmid} tells what that costs)"
    )
