"""The nodes of the cluster as they are seen from one of them: who is online, and what each has published.

This node is looked at afresh; of the others it is known what their timers wrote, and how old that is by their
own clocks.
"""

import os
import time
from collections.abc import Collection

from pxsched.cluster import publication, publish
from pxsched.cluster.publication import Publication
from pxsched.ledger import file as ledgers
from pxsched.node import others
from pxsched.node.sighting import Node
from pxsched.proxmox import cluster
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import Value

# Three heartbeats were missed; or, ahead of us, clocks differ by more than what is said can be built upon.
STALE_S = 3 * publish.HEARTBEAT_S


class Member(Value):
    """One node. online: None when unknown. said: what it published, None where there is nothing to be used,
    for the reason `problem`. age_s: of what it published; stale: it is too old to be built upon.
    """

    name: str
    online: bool | None
    said: Publication | None = None
    age_s: float = 0.0
    problem: str = ""

    @property
    def stale(self) -> bool:
        return abs(self.age_s) > STALE_S

    @property
    def usable(self) -> bool:
        """Whether a VM could go there, as far as we can say."""
        return self.said is not None and self.online is not False and not self.stale


def look(node: Node) -> list[Member]:
    """All nodes by name. node: this one, which is never stale."""
    ledger = ledgers.peek(node.root)
    here = publish.look(node, ledger, others.known(node.root, {*ledger.claims}))
    online = cluster.membership(node.root).online
    names = {node.name, *cluster.nodes(node.root)}
    return [
        Member(name, True, here)
        if name == node.name
        else _other(node.root, name, online.get(name), time.time())
        for name in sorted(names)
    ]


def _other(root: Root, name: str, online: bool | None, now_s: float) -> Member:
    file = publish.file_of(name)
    data = root.read_bytes(file, at_once=publication.MOST_BYTES)
    if data is None and os.path.lexists(root.path(file)):
        return Member(name, online, problem=f"/{file} cannot be read")
    if data is None:
        return Member(name, online, problem="it has published nothing: is pxsched installed there?")
    try:
        said = publication.parse(name, data)
    except Damaged as error:
        return Member(name, online, problem=f"/{file} cannot be its own: {str(error)[:80]}")
    return Member(name, online, said, now_s - said.at_s)


def running(root: Root, names: Collection[str]) -> dict[str, frozenset[int] | None]:
    """The VMs that run on other nodes, as those published; None for a node that says nothing new."""
    online, now_s = cluster.membership(root).online if names else {}, time.time()
    found = {name: _other(root, name, online.get(name), now_s) for name in names}
    return {
        name: member.said.running if member.said is not None and not member.stale else None
        for name, member in found.items()
    }
