"""The node as placement is shown it: the machine, its free memory, and who else is there."""

from pxsched.host import memory
from pxsched.node.others import Seen
from pxsched.node.sighting import Node
from pxsched.placement.housekeeping import host_of
from pxsched.placement.request import Host


def host(node: Node, seen: Seen, *, allocated: bool = False) -> Host:
    """allocated: it is asked for a VM that has its memory, so that a lack of it is no reason to refuse."""
    return host_of(
        node.topology,
        node.settings.node,
        free_mib=None if allocated else memory.free_mib(node.memory),
        free_hugepages_mib=None if allocated else memory.free_hugepages_mib(node.memory),
        foreign=seen.foreign,
        busy=seen.busy,
    )
