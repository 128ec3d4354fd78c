"""Who holds what, and what everything was before we turned it: one locked, atomically replaced file.

It lives in /run: nothing we turn survives a reboot, and neither does this. A reader never needs the lock, as
the file is replaced whole. A damaged file is set aside and the generation before it used; what even that does
not know is found out anew from the machines that run.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pxsched.errors import UserError
from pxsched.guest.process import Process
from pxsched.host import cpulist
from pxsched.ledger import lock
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root
from pxsched.settings.policy import Policy
from pxsched.value import Value, items, replace

SCHEMA = 1
DIR = "run/pxsched"
FILE = f"{DIR}/ledger.json"
PREVIOUS = f"{DIR}/ledger.previous.json"
LOCK = f"{DIR}/lock"
NODE = 0  # the owner of knobs that belong to no single VM


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"


class Claim(Value):
    """What one VM holds. placement: where it belongs. process: its QEMU, None while it starts.

    starter: the task that starts QEMU; the claim is void when that ends without QEMU.
    inherited: the CPU mask QEMU's threads would have had without us; empty when unknown.
    signature: what the placement was computed from; another one means computing again.
    source: the node a migrating VM comes from. hookscript: the VM's option when it was placed.
    memory_mib: its configured size.
    since_ns: boot time of the claim. load: measured demand in CPUs, None before it was measured.
    balloon_mib: what its guest was told to keep, None when nothing.
    """

    placement: Placement
    state: State
    policy: Policy = Policy()
    process: Process | None = None
    starter: Process | None = None
    inherited: str = ""
    signature: str = ""
    source: str = ""
    hookscript: str = ""
    memory_mib: int = 0
    weight: int = 100
    since_ns: int = 0
    load: float | None = None
    balloon_mib: int | None = None

    @property
    def vmid(self) -> int:
        return self.placement.vmid


class Entry(Value):
    """One knob we hold. owner: a VMID, or NODE. since_ns, drifted_ns: boot time of our first turn, and of
    when something else turned it last (None: never); drifts: how often. note: why it is not as wanted.
    leaving: it is being put back; where a pass was killed meanwhile, it may look as wanted and be so in part.
    """

    owner: int
    plugin: str
    original: str
    wanted: str
    since_ns: int
    drifted_ns: int | None = None
    drifts: int = 0
    note: str = ""
    leaving: bool = False


class Ledger:
    """The content of the file. Change it only inside `locked`. stored: what the file is known to say."""

    def __init__(
        self,
        claims: dict[int, Claim] | None = None,
        journal: dict[str, Entry] | None = None,
        warnings: list[str] | None = None,
        stored: tuple[dict[int, Claim], dict[str, Entry]] | None = None,
    ) -> None:
        self.claims = claims or {}
        self.journal = journal or {}
        self.warnings = warnings or []
        self.stored = stored

    def dumps(self, boot_id: str) -> str:
        return json.dumps(
            {
                "schema": SCHEMA,
                "boot_id": boot_id,
                "claims": {str(vmid): _claim_out(claim) for vmid, claim in self.claims.items()},
                "journal": {key: _entry_out(entry) for key, entry in self.journal.items()},
            },
            separators=(",", ":"),
            check_circular=False,
        )


def dedicated(claims: Iterable[Claim]) -> frozenset[int]:
    """The CPUs that somebody among these has to himself."""
    own = (claim.placement.cpus for claim in claims if claim.placement.vm_class is VmClass.DEDICATED)
    return frozenset().union(*own)


def now_ns() -> int:
    """Time since boot, suspend included: no clock change ever moves it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def peek(root: Root) -> Ledger:
    """The ledger as it stands, for reading only."""
    return _load(root, set_aside=False)


@contextmanager
def locked(root: Root, *, patience_s: float = 10.0) -> Iterator[Ledger]:
    """The ledger under its lock. Save with `save`; leaving does not.

    Raises UserError when the lock is not to be had in time, or /run cannot be written.
    """
    with lock.held(root, LOCK, patience_s=patience_s):
        yield _load(root, set_aside=True)


def save(root: Root, ledger: Ledger) -> None:
    """Replaces the file if anything changed; one that would say nothing is removed. Raises UserError, and
    leaves what was there, when there is no room.
    """
    if ledger.stored == (ledger.claims, ledger.journal):
        return
    path, previous, temporary = (root.path(name) for name in (FILE, PREVIOUS, f"{FILE}.new"))
    try:
        if ledger.claims or ledger.journal:
            with open(temporary, "wb") as stream:
                stream.write(ledger.dumps(_boot_id(root)).encode())
            # The generation before stays at hand, for the day this one is damaged.
            if os.path.exists(path):
                os.replace(path, previous)
            os.replace(temporary, path)
        else:
            for name in (previous, temporary, path):
                _remove(name)
    except OSError as error:
        _remove(temporary)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    ledger.stored = (dict(ledger.claims), dict(ledger.journal))


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _load(root: Root, *, set_aside: bool) -> Ledger:
    warnings: list[str] = []
    for file in (FILE, PREVIOUS):
        data = root.read_bytes(file)
        if data is None:
            continue
        try:
            claims, journal = _loads(data, _boot_id(root))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, UserError) as error:
            aside = f"{file}.damaged"
            if set_aside:
                _set_aside(root.path(file), root.path(aside))
            warnings.append(f"/{file} is damaged ({str(error)[:80]}), kept as /{aside}")
        else:
            stored = (claims, journal) if file == FILE else None
            return Ledger(dict(claims), dict(journal), warnings, stored)
    return Ledger(warnings=warnings)


def _set_aside(path: str, aside: str) -> None:
    try:
        os.replace(path, aside)
    except OSError as error:
        raise UserError(f"cannot move {path} aside: {error.strerror}") from error


def _boot_id(root: Root) -> str:
    return root.read("proc/sys/kernel/random/boot_id") or ""


@lru_cache(maxsize=1)  # a `watch` reads the same again and again
def _loads(data: bytes, boot_id: str) -> tuple[dict[int, Claim], dict[str, Entry]]:
    """Claims and journal; not to be changed."""
    document = json.loads(data)
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']!r} is not {SCHEMA}")
    if document["boot_id"] != boot_id:
        return {}, {}  # of an earlier boot: every value it speaks of is gone
    return (
        {int(vmid): _claim_in(int(vmid), body) for vmid, body in document["claims"].items()},
        {key: _entry_in(body) for key, body in document["journal"].items()},
    )


def _claim_out(claim: Claim) -> dict[str, Any]:
    placement = claim.placement
    return {
        "class": placement.vm_class.value,
        "vcpus": _packed([cpulist.format(cpus) for cpus in placement.vcpus]),
        "emulator": cpulist.format(placement.emulator),
        "nodes": cpulist.format(placement.nodes),
        "why": placement.why,
        "state": claim.state.value,
        "policy": _policy_out(claim.policy),
        "process": _process_out(claim.process),
        "starter": _process_out(claim.starter),
        "inherited": claim.inherited,
        "signature": claim.signature,
        "source": claim.source,
        "hookscript": claim.hookscript,
        "memory_mib": claim.memory_mib,
        "weight": claim.weight,
        "since_ns": claim.since_ns,
        "load": claim.load,
        "balloon_mib": claim.balloon_mib,
    }


_CLAIM_TYPES = {
    "inherited": str, "signature": str, "source": str, "hookscript": str,
    "memory_mib": int, "weight": int, "since_ns": int,
}  # fmt: skip


def _claim_in(vmid: int, body: Mapping[str, Any]) -> Claim:
    """Raises what a wrong kind of value leads to: it must not surface later, in the middle of a pass."""
    for name, kind in _CLAIM_TYPES.items():
        if type(body[name]) is not kind:
            raise TypeError(f"{name} of VM {vmid}")
    if type(body.get("balloon_mib")) not in (int, type(None)):
        raise TypeError(f"balloon of VM {vmid}")
    if not all(type(line) is str for line in body["why"]):
        raise TypeError(f"why of VM {vmid}")
    placement = Placement(
        vmid,
        VmClass(body["class"]),
        _unpacked(body["vcpus"]),
        cpulist.parse(body["emulator"]),
        cpulist.parse(body["nodes"]),
        tuple(body["why"]),
    )
    return Claim(
        placement=placement,
        state=State(body["state"]),
        policy=_policy_in(body["policy"]),
        process=_process_in(body["process"]),
        starter=_process_in(body["starter"]),
        inherited=body["inherited"],
        signature=body["signature"],
        source=body["source"],
        hookscript=body["hookscript"],
        memory_mib=body["memory_mib"],
        weight=body["weight"],
        since_ns=body["since_ns"],
        load=None if body["load"] is None else float(body["load"]),
        balloon_mib=body.get("balloon_mib"),
    )


def _packed(lists: list[str]) -> list[str] | dict[str, Any]:
    """vCPUs that float in one home share one text."""
    if len(lists) > 1 and len(set(lists)) == 1:
        return {"cpus": lists[0], "count": len(lists)}
    return lists


def _unpacked(value: Any) -> tuple[frozenset[int], ...]:
    if isinstance(value, dict):
        return (cpulist.parse(value["cpus"]),) * int(value["count"])
    return tuple(cpulist.parse(text) for text in value)


_DEFAULT = Policy()


def _policy_out(policy: Policy) -> dict[str, Any]:
    """Only what differs from the defaults."""
    if policy is _DEFAULT:
        return {}
    return {name: value for name, value in items(policy) if value != Policy.declared[name].default}


def _policy_in(body: Mapping[str, Any]) -> Policy:
    if not body:
        return _DEFAULT
    values: dict[str, Any] = {name: Policy.declared[name].parse(value) for name, value in body.items()}
    return replace(Policy(), **values)


def _process_out(process: Process | None) -> list[int] | None:
    return None if process is None else [process.pid, process.start_ticks]


def _process_in(body: Any) -> Process | None:
    return None if body is None else Process(int(body[0]), int(body[1]))


def _entry_out(entry: Entry) -> list[Any]:
    """The fields in the order of `Entry`; the last only where it is true."""
    known = [
        entry.owner, entry.plugin, entry.original, entry.wanted,
        entry.since_ns, entry.drifted_ns, entry.drifts, entry.note,
    ]  # fmt: skip
    return [*known, True] if entry.leaving else known


_ENTRY_TYPES = tuple(
    [int, str, str, str, int, drifted, int, str, *leaving]
    for drifted in (int, type(None))
    for leaving in ((), (bool,))
)


def _entry_in(body: Any) -> Entry:
    if [type(value) for value in body] not in _ENTRY_TYPES:
        raise TypeError("a knob's entry")
    return Entry(*body)
