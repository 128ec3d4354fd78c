"""This node's publication: made of one pass's look, and written where the other nodes find it.

/etc/pve is pmxcfs: every write is a message to all nodes, fails with EACCES without quorum, and may block
without limit while the membership changes. So it is written on change, at most once a minute, by a child with
a deadline, as Proxmox does it: a temporary file, created anew, that takes the name by a rename. A node on its
own has nobody to tell.
"""

import os
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pxsched.root import Root

if TYPE_CHECKING:  # most passes have nothing to publish yet
    from pxsched.cluster.publication import Device, Processor, Publication
    from pxsched.ledger.file import Ledger
    from pxsched.node.others import Seen
    from pxsched.node.sighting import Node

NODES_DIR = "etc/pve/nodes"
NAME = "pxsched.json"
PERIOD_S = 60.0
# Without a change, so that the others see that we are there.
HEARTBEAT_S = 300.0
PATIENCE_S = 2.0
# What of a load or of free memory is no change worth a message to all nodes: the larger of both.
STEADY, STEADY_CPUS, STEADY_MIB = 0.1, 0.5, 1024


def file_of(name: str) -> str:
    """Where a node's publication is."""
    return f"{NODES_DIR}/{name}/{NAME}"


def tick(node: "Node", ledger: "Ledger", seen: "Seen") -> str:
    """Publishes if it is time and anything is new. Returns what is to be told: why it failed, or nothing."""
    path = file_of(node.name)
    age_s = _age_s(node.root, path)
    if len(node.root.list(NODES_DIR)) < 2 or 0 <= age_s < PERIOD_S:
        return ""
    from pxsched.cluster import publication
    from pxsched.proxmox import cluster

    if not cluster.quorate(node.root):
        return ""
    import json

    from pxsched import stored

    data = json.dumps(publication.document(look(node, ledger, seen)), separators=(",", ":")).encode()
    if 0 <= age_s < HEARTBEAT_S and not differs(_before(node.root, path), stored.parse(data)):
        return ""
    from pxsched import child

    try:
        child.attempt(_writer(node.root.path(path), data), patience_s=PATIENCE_S)
    except child.Late:
        return f"/{path} was not written within {PATIENCE_S:g} s; the cluster's file system may be at a halt"
    except OSError as error:
        return f"/{path} cannot be written: {error.strerror}"
    return ""


def _age_s(root: Root, path: str) -> float:
    """Seconds since it was written, by our own clock; negative when there is none, or it is of the future."""
    try:
        return time.time() - os.stat(root.path(path)).st_mtime
    except OSError:
        return -1.0


def _before(root: Root, path: str) -> Any:
    """What it says; None where that is nothing, or not to be read."""
    from pxsched import stored
    from pxsched.stored import Damaged

    data = root.read_bytes(path)
    try:
        return None if data is None else stored.parse(data)
    except Damaged:
        return None


def _writer(path: str, data: bytes) -> Callable[[], None]:
    def write() -> None:
        temporary = f"{path}.tmp.{os.getpid()}"
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
            os.rename(temporary, path)
        except OSError:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    return write


def differs(before: Any, now: Mapping[str, Any]) -> bool:
    """Whether two documents differ in more than what is measured, and in that by more than a little."""
    if not isinstance(before, dict) or not isinstance(before.get("measured"), dict):
        return True
    if any(before.get(key) != now[key] for key in now if key != "measured"):
        return True
    was, measured = before["measured"], now["measured"]
    return _moved(was.get("loads"), measured["loads"], STEADY_CPUS) or any(
        _moved(was.get(key), measured[key], STEADY_MIB)
        for key in ("free_mib", "free_hugepages_mib", "resident_mib")
    )


def _moved(before: Any, now: Any, least: float) -> bool:
    """Whether any number of the one is far from that of the other."""
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() != now.keys() or any(_moved(before[key], now[key], least) for key in now)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) != len(now) or any(map(_moved, before, now, repeat(least)))
    if isinstance(before, int | float) and isinstance(now, int | float):
        return abs(before - now) > max(least, STEADY * abs(before))
    return True


def look(node: "Node", ledger: "Ledger", seen: "Seen") -> "Publication":
    """The node as a pass saw it."""
    from pxsched.cluster.publication import Publication, Stranger, Vm
    from pxsched.host import cgroup
    from pxsched.ledger import file as ledgers
    from pxsched.ledger.claim import holding
    from pxsched.node import fences, offer
    from pxsched.value import replace
    from pxsched.version import VERSION

    def resident(group: str) -> dict[int, int]:
        return {one: size >> 20 for one, size in (cgroup.memory_bytes(node.root, group) or {}).items()}

    now_s = time.time()
    fence = fences.of_vm(node, ledger, 0, None)
    return Publication(
        node=node.name,
        at_s=now_s,
        version=VERSION,
        host=replace(offer.host(node, seen), foreign=()),
        vms=tuple(
            Vm(
                holding(claim),
                claim.placement.nodes,
                claim.memory_mib,
                resident(cgroup.scope(vmid)),
                now_s - (ledgers.now_ns() - claim.since_ns) / 1e9 if claim.since_ns else 0.0,
            )
            for vmid, claim in sorted(ledger.claims.items())
        ),
        strangers=tuple(
            Stranger(one.vmid, one.process is None, one.cpus, one.load, one.memory_mib) for one in seen.others
        ),
        fence=None if fence is None else (fence.cpus, fence.name),
        processor=_processor(node.root),
        devices=_devices(node.root, node.name),
        local=_local(node.root),
    )


def _processor(root: Root) -> "Processor":
    """Rules: /proc/cpuinfo; the levels are those of the x86-64 psABI."""
    import hashlib
    import re

    from pxsched.cluster.publication import Processor

    first = (root.read("proc/cpuinfo") or "").split("\n\n")[0]
    said = dict(re.findall(r"^([a-z_ ]+?)\s*: (.*)$", first, re.MULTILINE))
    flags = frozenset(said.get("flags", "").split())
    if not flags:
        return Processor()
    level = 1
    for wanted in _LEVELS:
        if not flags.issuperset(wanted.split()):
            break
        level += 1
    digest = hashlib.sha1(" ".join(sorted(flags)).encode(), usedforsecurity=False).hexdigest()
    vendor, model = said.get("vendor_id", "")[:40], said.get("model name", "")[:120].strip()
    return Processor(vendor, model, digest, level, flags)


_LEVELS = (
    "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3",
    "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    "avx512f avx512bw avx512cd avx512dq avx512vl",
)


def _devices(root: Root, name: str) -> "dict[str, Device]":
    """The functions that resource mappings name on this node, if they are there."""
    from pxsched.cluster.publication import MOST_DEVICES, Device
    from pxsched.guest import passthrough
    from pxsched.host import devices

    text = root.read(passthrough.MAPPINGS) or ""
    if not text:
        return {}
    reserved = passthrough.reservations(root)
    addresses = dict.fromkeys(
        function for slot in passthrough.mapped(text, None, name) for function in devices.expand(root, slot)
    )
    return {
        address: Device(devices.node_of(root, address), reserved.get(address, 0))
        for address in [*addresses][:MOST_DEVICES]
    }


def _local(root: Root) -> Any:
    """The node's own settings; None where they are too long, or have what JSON has not."""
    import json

    from pxsched import stored
    from pxsched.cluster.publication import MOST_LOCAL
    from pxsched.settings import files as settings

    try:
        text = json.dumps(settings.content(root, settings.NODE_FILE), default=str, allow_nan=False)
        return stored.table(stored.parse(text, most_bytes=MOST_LOCAL))
    except ValueError:
        return None
