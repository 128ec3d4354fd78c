"""The cluster's nodes, for `doctor --cluster`: who publishes, which versions there are, who is opted in."""

from collections.abc import Iterator

from pxsched.cluster import fit, members
from pxsched.doctor.finding import Finding, Level, Subject, vms
from pxsched.guest.hookscript import is_ours
from pxsched.node.sighting import open_node
from pxsched.proxmox import cluster


def quorum(subject: Subject) -> Iterator[Finding]:
    """Without it nothing is published, and no VM can be changed."""
    if not cluster.quorate(subject.root):
        yield Finding(Level.BAD, "cluster", "no quorum: nothing is published or changed until there is one")


def nodes(subject: Subject) -> Iterator[Finding]:
    """One line for each node: what it published, and its VMs."""
    found = members.look(open_node(subject.root))
    versions = {member.said.version for member in found if member.said is not None}
    for member in found:
        problem = fit.unusable(member)
        if problem:
            remedy = "run install.sh there" if member.said is None and member.online is not False else ""
            yield Finding(Level.WARN, member.name, problem, remedy)
        elif member.said is not None:
            own = "" if len(versions) == 1 else f", version {member.said.version}"
            text = f"published {max(0, round(member.age_s))} s ago, {len(member.said.running)} VMs run{own}"
            yield Finding(Level.OK if not own else Level.NOTE, member.name, text)
        here = [guest for guest in subject.guests if guest.node == member.name]
        enabled = [guest for guest in here if is_ours(guest.hookscript)]
        yield Finding(Level.OK, member.name, f"{len(enabled)} of {len(here)} VMs are opted in")
        special = {
            "templates": [guest for guest in enabled if guest.template],
            "HA resources": [guest for guest in enabled if guest.ha],
            "locked": [guest for guest in here if guest.options.get("lock")],
        }
        for name, those in special.items():
            if those:
                yield Finding(Level.NOTE, member.name, f"{name}: VMs {vms(those)}")


CHECKS = (quorum, nodes)
