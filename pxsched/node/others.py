"""Who else is on the node: VMs that are not opted in, containers, and work that belongs to nobody we know.

The timer measures, and writes what it saw to /run/pxsched/others.json; a hook reads that when it looks for a
place, and looks itself only at whoever came since. What lies too long is no longer believed: then it is known
where the others may run, and not what they use.
"""

from collections.abc import Collection, Mapping

from pxsched import stored
from pxsched.errors import UserError
from pxsched.guest import container, process
from pxsched.guest.process import Process
from pxsched.host import cgroup, cpulist
from pxsched.ledger import file as ledgers
from pxsched.placement.request import Foreign
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value, replace

FILE = "run/pxsched/others.json"
STALE_S = 60.0
MOST_BYTES = 4 << 20
MOST_OTHERS = 1 << 14


class Other(Value):
    """Somebody whom we do not place. process: QEMU; None for a container.

    cpus: where its threads may run, by the kernel's word. load: what it uses, in CPUs, None when unknown.
    memory_mib: by NUMA node; empty when unknown.
    """

    vmid: int
    process: Process | None
    cpus: frozenset[int]
    load: float | None = None
    memory_mib: Mapping[int, int] = NOTHING

    @property
    def name(self) -> str:
        return f"{'container' if self.process is None else 'VM'} {self.vmid}"


class Seen(Value):
    """at_ns: boot time. busy: by CPU, the part of its time (0 to 1) that nobody we know of uses."""

    at_ns: int
    others: tuple[Other, ...] = ()
    busy: Mapping[int, float] = NOTHING

    @property
    def foreign(self) -> tuple[Foreign, ...]:
        """The others as placement sees them."""
        return tuple(Foreign(other.name, other.cpus, other.load) for other in self.others)


def known(root: Root, ours: Collection[int]) -> Seen:
    """Who else is there now. ours: the VMs that are placed, or about to be.

    Reads the timer's file, one pid file for each VM, and the masks of those only that came since.
    """
    now_ns = ledgers.now_ns()
    seen = load(root)
    if seen is None or not 0 <= now_ns - seen.at_ns < STALE_S * 1e9:
        seen = Seen(now_ns)
    before = {other.vmid: other for other in seen.others}
    others = []
    for vmid in process.running(root):
        if vmid in ours:
            continue
        other = before.get(vmid)
        if other is None or other.process is None or not _is_pid(root, vmid, other.process.pid):
            other = _vm_afresh(root, vmid)
        if other is not None:
            others.append(other)
    for vmid in container.running(root):
        found = container_now(root, vmid)
        if found is not None:
            other = before.get(vmid)
            others.append(found if other is None else replace(found, load=other.load))
    return Seen(seen.at_ns, tuple(others), seen.busy)


def _is_pid(root: Root, vmid: int, pid: int) -> bool:
    return root.read(f"{process.RUN_DIR}/{vmid}.pid") == str(pid)


def _vm_afresh(root: Root, vmid: int) -> Other | None:
    """A VM by its main thread, whose mask the others have inherited as long as nobody chose anything else."""
    found = process.find(root, vmid)
    mask = None if found is None else process.allowed(root, found.pid)
    return None if found is None or mask is None else Other(vmid, found, cpulist.parse(mask))


def container_now(root: Root, vmid: int) -> Other | None:
    """A container's CPUs; None when it ended meanwhile."""
    try:
        return Other(vmid, None, cgroup.effective_cpus(root, container.inner(vmid)))
    except UserError:
        return None


# As text.


def load(root: Root) -> Seen | None:
    """What the timer saw last in this boot; None when there is nothing, or it is damaged."""
    document = read(root)
    try:
        return None if document is None else seen_of(document)
    except (Damaged, UserError):
        return None


def read(root: Root) -> Mapping[str, object] | None:
    """The file's content; None when it is not there, is damaged, or of another boot."""
    data = root.read_bytes(FILE)
    if data is None:
        return None
    try:
        document = stored.table(stored.parse(data, most_bytes=MOST_BYTES))
        return document if stored.text(document.get("boot_id")) == boot_id(root) else None
    except Damaged:
        return None


def seen_of(document: Mapping[str, object]) -> Seen:
    """Raises Damaged, and UserError for what is no CPU list."""
    return Seen(
        stored.integer(document.get("at_ns")),
        tuple(_other(body) for body in stored.listed(document.get("others"), MOST_OTHERS)),
        {cpu: stored.number(part, 0, 1) for cpu, part in numbered(document.get("busy")).items()},
    )


def document(seen: Seen) -> dict[str, object]:
    """What `seen_of` reads."""
    others = [
        [
            other.vmid,
            None if other.process is None else [other.process.pid, other.process.start_ticks],
            cpulist.format(other.cpus),
            other.load,
            other.memory_mib,
        ]
        for other in seen.others
    ]
    return {"at_ns": seen.at_ns, "others": others, "busy": seen.busy}


def numbered(value: object) -> dict[int, object]:
    """An object whose members are named by CPUs, nodes or VMIDs. Raises Damaged."""
    return {stored.vmid(name): body for name, body in stored.table(value).items()}


def boot_id(root: Root) -> str:
    return root.read("proc/sys/kernel/random/boot_id") or ""


def _other(body: object) -> Other:
    fields = stored.listed(body, 5)
    if len(fields) != 5:
        raise Damaged(f"{stored.shown(body)} is not one of the others")
    vmid, run, cpus, load, memory_mib = fields
    if run is not None:
        pid, start_ticks = stored.pair(run)
        run = Process(stored.integer(pid), stored.integer(start_ticks))
    return Other(
        stored.integer(vmid),
        run,
        cpulist.parse(stored.text(cpus)),
        stored.maybe(stored.number, load),
        {node: stored.integer(mib) for node, mib in numbered(memory_mib).items()},
    )
