"""What has to be known before a balloon is taken over: what the guest says, and what its policy says."""

from collections.abc import Iterable

from pxsched.guest import config
from pxsched.proxmox.cluster import Guest
from pxsched.root import Root
from pxsched.settings import files as settings

_PATIENCE_S = 2.0


def silent(root: Root | None, node: str | None, guests: Iterable[Guest]) -> dict[int, str]:
    """In which way running guests of this node give no statistics; those that do are left out, and those that
    cannot be asked. root: None over HTTPS.
    """
    here = {guest.vmid: guest for guest in guests if guest.running and guest.node == node}
    if root is None or not root.live or not here:
        return {}
    from pxsched.guest.balloon import Reading, read_all

    found = {}
    for vmid, answer in read_all(root, here, patience_s=_PATIENCE_S).items():
        memory_mib = config.machine(config.Config(here[vmid].options)).memory_mib
        if isinstance(answer, Reading) and (silence := answer.silence(memory_mib)):
            found[vmid] = silence.value
    return found


def minimum_percents(root: Root | None, guests: Iterable[Guest]) -> dict[int, float]:
    """The policy for VMs whose `balloon` is all their memory, by VMID."""
    if root is None:
        return {}
    known = settings.load(root)
    return {guest.vmid: known.policy(guest.vmid, guest.tags).balloon_minimum_percent for guest in guests}
