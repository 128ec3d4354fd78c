"""What one VM holds, as a value and as the text of it in the ledger.

The text has two parts. The brief is what other VMs must respect: each hook reads it of all VMs, so it is
words and not JSON. The rest is for the VM itself.
"""

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pxsched import stored
from pxsched.errors import UserError
from pxsched.guest.process import Process
from pxsched.host import cpulist
from pxsched.placement.request import EXCLUSIVE, Holding, Placement, VmClass
from pxsched.settings.policy import Policy, Smt
from pxsched.stored import Damaged
from pxsched.value import Value, items, replace

# More than any machine has CPUs for; keeps a damaged count from filling the memory.
MOST_VCPUS = 8192


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"


class Aside(Value):
    """Where a VM was before a proof moved it for a while, and what that place was computed from."""

    placement: Placement
    signature: str


class Claim(Value):
    """What one VM holds. placement: where it belongs. process: its QEMU, None while it starts.

    starter: the task that starts QEMU; the claim is void when that ends without QEMU.
    inherited: the CPU mask QEMU's threads would have had without us; empty when unknown.
    signature: what the placement was computed from; another one means computing again.
    source: the node a migrating VM comes from. hookscript: the VM's option when it was placed.
    memory_mib: its configured size.
    since_ns: boot time of the claim. load: measured demand in CPUs, None before it was measured.
    balloon_mib: what its guest was told to keep, None when nothing.
    aside: what it gets back when a proof is over.
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
    aside: Aside | None = None

    @property
    def vmid(self) -> int:
        return self.placement.vmid

    @property
    def felt(self) -> bool:
        """Whether it matters to the knobs of the node, or of other VMs: it has CPUs of its own, is about to
        take memory, or wishes something of the whole host.
        """
        policy = self.policy
        return (
            self.placement.vm_class in EXCLUSIVE
            or self.state is State.STARTING
            or policy.halt_poll_ns >= 0
            or policy.resume_latency_us >= 0
        )


def dedicated(claims: Iterable[Claim], *, pinned: bool = False) -> frozenset[int]:
    """The CPUs that somebody among these has to himself. pinned: those of pinned VMs are meant, too."""
    classes = EXCLUSIVE if pinned else (VmClass.DEDICATED,)
    own = (claim.placement.cpus for claim in claims if claim.placement.vm_class in classes)
    return frozenset().union(*own)


def holding(claim: Claim) -> Holding:
    """What other VMs must respect of a claim."""
    placement = claim.placement
    return Holding(
        claim.vmid, placement.vm_class, placement.vcpus, claim.policy.smt, claim.weight, claim.load,
        _taking(claim.state, claim.memory_mib, placement.nodes),
    )  # fmt: skip


def _taking(state: State, memory_mib: int, nodes: frozenset[int]) -> Mapping[int, int]:
    """The memory by node that the kernel does not show as used yet: a VM that runs has what it has."""
    if state is not State.STARTING:
        return {}
    return dict.fromkeys(nodes, memory_mib // max(1, len(nodes)))


# As text.

FELT, _PLAIN, _NONE = "felt", "plain", "-"
"""How the text of a claim that is `felt` begins; that of others."""


def encode(claim: Claim) -> str:
    placement = claim.placement
    brief = (
        FELT if claim.felt else _PLAIN,
        _NONE if claim.load is None else repr(claim.load),
        placement.vm_class.value,
        _packed([cpulist.format(cpus) for cpus in placement.vcpus]),
        claim.policy.smt.value,
        claim.weight,
        claim.state.value,
        claim.memory_mib,
        cpulist.format(placement.nodes) or _NONE,
    )
    rest: dict[str, Any] = {
        "emulator": cpulist.format(placement.emulator),
        "why": placement.why,
        "policy": _policy_out(claim.policy),
        "process": _process_out(claim.process),
        "starter": _process_out(claim.starter),
        "inherited": claim.inherited,
        "signature": claim.signature,
        "source": claim.source,
        "hookscript": claim.hookscript,
        "since_ns": claim.since_ns,
        "balloon_mib": claim.balloon_mib,
    }
    if claim.aside is not None:
        rest["aside"] = [placement_out(claim.aside.placement), claim.aside.signature]
    return f"{' '.join(map(str, brief))}\t{json.dumps(rest, separators=(',', ':'))}"


def brief(vmid: int, text: str) -> Holding:
    """What others must respect, without reading the rest. Raises Damaged."""
    try:
        _, load, shape = text.partition("\t")[0].split(" ", 2)
        held = _shape(shape)
        demand = None if load == _NONE else float(load)
        if demand is not None and not 0 <= demand <= MOST_VCPUS:
            raise Damaged(f"a load of {load}")
        return Holding(vmid, held.vm_class, held.vcpus, held.smt, held.weight, demand, held.memory_mib)
    except (ValueError, LookupError, UserError) as error:
        raise Damaged(f"claim of VM {vmid}: {str(error)[:60]}") from error


@lru_cache(maxsize=1024)  # a node has few different ones
def _shape(text: str) -> Holding:
    """A holding of VM 0, with an unknown load. Raises ValueError, LookupError, UserError."""
    vm_class, vcpus, smt, weight, state, memory_mib, nodes = text.split(" ")
    amount_mib = stored.integer(int(memory_mib), 0, 1 << 40)
    return Holding(
        0, _CLASSES[vm_class], _unpacked(vcpus), _SMT[smt], stored.integer(int(weight), 1, 1 << 18), None,
        _taking(_STATES[state], amount_mib, _nodes(nodes)),
    )  # fmt: skip


_CLASSES = {member.value: member for member in VmClass}
_SMT = {member.value: member for member in Smt}
_STATES = {member.value: member for member in State}


def _nodes(text: str) -> frozenset[int]:
    return frozenset() if text == _NONE else cpulist.parse(text)


def decode(vmid: int, text: str) -> Claim:
    """The claim. Raises Damaged."""
    head, _, tail = text.partition("\t")
    held, body, words = brief(vmid, head), stored.table(stored.parse(tail)), head.split(" ")
    try:
        return Claim(
            placement=Placement(
                vmid,
                held.vm_class,
                held.vcpus,
                cpulist.parse(stored.text(body["emulator"])),
                _nodes(words[8]),
                tuple(stored.text(line) for line in stored.listed(body["why"])),
            ),
            state=_STATES[words[6]],
            policy=_policy_in(stored.table(body["policy"])),
            process=stored.maybe(_process_in, body["process"]),
            starter=stored.maybe(_process_in, body["starter"]),
            inherited=stored.text(body["inherited"]),
            signature=stored.text(body["signature"]),
            source=stored.text(body["source"]),
            hookscript=stored.text(body["hookscript"]),
            memory_mib=int(words[7]),
            weight=held.weight,
            since_ns=stored.integer(body["since_ns"]),
            load=held.load,
            balloon_mib=stored.maybe(stored.integer, body["balloon_mib"]),
            aside=stored.maybe(lambda value: _aside_in(vmid, value), body.get("aside")),
        )
    except (LookupError, ValueError, UserError) as error:
        raise Damaged(f"claim of VM {vmid}: {str(error)[:60]}") from error


def placement_out(placement: Placement) -> list[Any]:
    """A placement as JSON has it, without the VM's number."""
    return [
        placement.vm_class.value,
        _packed([cpulist.format(cpus) for cpus in placement.vcpus]),
        cpulist.format(placement.emulator),
        cpulist.format(placement.nodes) or _NONE,
        list(placement.why),
    ]


def placement_in(vmid: int, body: object) -> Placement:
    """The placement again. Raises Damaged."""
    vm_class, vcpus, emulator, nodes, why = stored.items(body, 5)
    try:
        return Placement(
            vmid,
            _CLASSES[stored.text(vm_class)],
            _unpacked(stored.text(vcpus)),
            cpulist.parse(stored.text(emulator)),
            _nodes(stored.text(nodes)),
            tuple(stored.text(line) for line in stored.listed(why)),
        )
    except (LookupError, ValueError, UserError) as error:
        raise Damaged(f"placement of VM {vmid}: {str(error)[:60]}") from error


def _aside_in(vmid: int, body: object) -> Aside:
    placement, signature = stored.pair(body)
    return Aside(placement_in(vmid, placement), stored.text(signature))


def _packed(lists: list[str]) -> str:
    """vCPUs that float in one home share one text."""
    if not lists:
        return _NONE
    if len(set(lists)) == 1:
        return f"{lists[0]}*{len(lists)}"
    return ";".join(lists)


def _unpacked(text: str) -> tuple[frozenset[int], ...]:
    if text == _NONE:
        return ()
    home, star, count = text.partition("*")
    if star:
        return (cpulist.parse(home),) * stored.integer(int(count), 1, MOST_VCPUS)
    return tuple(map(cpulist.parse, text.split(";")))


_DEFAULT = Policy()


def _policy_out(policy: Policy) -> dict[str, Any]:
    """Only what differs from the defaults."""
    return {name: value for name, value in items(policy) if value != Policy.declared[name].default}


def _policy_in(body: Mapping[str, Any]) -> Policy:
    if not body:
        return _DEFAULT
    values: dict[str, Any] = {name: Policy.declared[name].parse(value) for name, value in body.items()}
    return replace(_DEFAULT, **values)


def _process_out(process: Process | None) -> list[int] | None:
    return None if process is None else [process.pid, process.start_ticks]


def _process_in(body: object) -> Process:
    pid, start_ticks = stored.pair(body)
    return Process(stored.integer(pid, 0, 1 << 22), stored.integer(start_ticks))
