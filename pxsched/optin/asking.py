"""What has to be known before balloons are taken over: what guests say, and what the settings say."""

from collections.abc import Iterable

from pxsched.guest import config
from pxsched.proxmox.cluster import Guest
from pxsched.root import Root
from pxsched.settings import files as settings

_PATIENCE_S = 2.0


def unserved(root: Root | None, node: str | None, guests: Iterable[Guest]) -> dict[int, str]:
    """Why balloons of these VMs would not be moved, by the settings or for the guest's silence, as far as
    that can be known here. root: None over HTTPS.
    """
    if root is None:
        return {}
    known, found = settings.load(root), {}
    for guest in guests:
        if not known.policy(guest.vmid, guest.tags).balloon:
            found[guest.vmid] = "its policy says `balloon = false`"
        elif guest.node == node and not known.node.balance_memory:
            found[guest.vmid] = "`balance_memory` is false on this node"
    return {**_silent(root, node, guests), **found}


def _silent(root: Root, node: str | None, guests: Iterable[Guest]) -> dict[int, str]:
    """Running guests of this node that give no statistics; those that cannot be asked are left out."""
    here = {guest.vmid: guest for guest in guests if guest.running and guest.node == node}
    if not root.live or not here:
        return {}
    from pxsched.guest.balloon import Reading, read_all

    found = {}
    for vmid, answer in read_all(root, here, patience_s=_PATIENCE_S).items():
        memory_mib = config.machine(config.Config(here[vmid].options)).memory_mib
        if isinstance(answer, Reading) and (silence := answer.silence(memory_mib)):
            found[vmid] = f"its guest is silent: {silence.value}"
    return found


def minimum_percents(root: Root | None, guests: Iterable[Guest]) -> dict[int, float]:
    """The policy for VMs whose `balloon` is all their memory, by VMID."""
    if root is None:
        return {}
    known = settings.load(root)
    return {guest.vmid: known.policy(guest.vmid, guest.tags).balloon_minimum_percent for guest in guests}
