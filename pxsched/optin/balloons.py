"""Whose balloon pxsched takes over from Proxmox, and what has to be set for it. Pure.

Proxmox starts a VM with a `balloon` minimum at that minimum, and its own controller lets it grow unless its
`shares` are 0 (PVE::AutoBalloon). So a VM is taken over only when pxsched will really move its balloon.
"""

from pxsched.guest import config
from pxsched.node.guests import pinned
from pxsched.proxmox.cluster import Guest
from pxsched.value import Value


class Takeover(Value):
    """shares, balloon: what they become, None where they stay. refused: why the balloon stays as it is, empty
    when it does not. note: what the admin should know besides.
    """

    shares: str | None = None
    balloon: str | None = None
    refused: str = ""
    note: str = ""


def takeover(guest: Guest, *, asked: bool, unserved: str = "", minimum_percent: float = 0.0) -> Takeover:
    """What becomes of a VM's balloon. asked: whether the admin gives balloons to us.

    unserved: why it would not be moved, apart from its configuration (`asking`). minimum_percent: the policy
    for VMs whose minimum is all their memory.
    """
    machine = config.machine(config.Config(guest.options))
    whole = machine.balloon_mib is None or machine.balloon_mib >= machine.memory_mib
    minimum = round(machine.memory_mib * minimum_percent / 100) if whole else 0
    if machine.balloon_mib == 0 or (whole and not 0 < minimum < machine.memory_mib):
        # There is nothing to move, for Proxmox neither.
        return Takeover(note=_nothing_moves(guest.vmid, machine.balloon_mib) if asked else "")
    if not whole and machine.shares == 0:  # Proxmox leaves it alone already
        reason = pinned(machine) or unserved
        return Takeover(note=f"nothing is taken from it: {reason}" if asked and reason else "")
    if not asked:
        return Takeover() if whole or pinned(machine) else Takeover(note=_PROXMOXS)
    if reason := pinned(machine) or unserved:
        return Takeover(refused=f"its balloon stays as it is: {reason}")
    if whole and machine.shares == 0 and guest.running:
        return Takeover(
            refused="its balloon stays as it is: a lower minimum would apply at once; stop the VM first"
        )
    return Takeover("0", str(minimum) if whole else None)


def deserted(guest: Guest) -> list[str]:
    """What to say of a VM that stays at its minimum once we have left it: Proxmox keeps away from its
    `shares` of 0, which are a clone's, say, or an admin's own.
    """
    machine = config.machine(config.Config(guest.options))
    if machine.shares or not 0 < (machine.balloon_mib or 0) < machine.memory_mib:
        return []
    return [f"nobody moves its balloon then: `qm set {guest.vmid} --delete shares` gives it to Proxmox"]


def _nothing_moves(vmid: int, balloon_mib: int | None) -> str:
    if balloon_mib == 0:
        return "nothing will move: it has no balloon (balloon: 0)"
    return (
        f"nothing will move: its `balloon` is not below its memory; `qm set {vmid} --balloon MIB` makes it so"
    )


_PROXMOXS = "Proxmox moves its balloon; --balloon gives it to pxsched"
