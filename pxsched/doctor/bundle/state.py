"""Of our own state: claims, knobs, the last pass, who else is there and what was counted, as far as these are
numbers and sentences of ours.

The ledger is written anew by the ledger's own writer, with the boot id that the bundle has instead of the
machine's: who unpacks it reads it as of this boot.

Left out is what holds others' words and nothing that a replay needs: the settings that were kept (those in
force are written anew), what was said of shapes and of Karpenter's VM, what is remembered below /etc/pve, and
what the nodes of the cluster tell each other; and how long threads ran, which no replay goes on with.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator

from pxsched.doctor.bundle import machine, words
from pxsched.guest.hookscript import is_ours
from pxsched.knobs import balloon
from pxsched.knobs.knob import KINDS, from_key
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import Entry
from pxsched.monitor import passes, refusals
from pxsched.node import others, remembered
from pxsched.node.remembered import Last
from pxsched.placement.request import VmClass
from pxsched.root import Root
from pxsched.settings.policy import Prefer, Smt
from pxsched.value import replace

BOOT_ID = "00000000-0000-0000-0000-000000000000"
BOOT_FILE = "proc/sys/kernel/random/boot_id"
LEFT_OUT = "(left out of the bundle)"
_SIGNATURE = frozenset([*VmClass, *Smt, *Prefer, "bind", "interleave", "preferred"])


def files(root: Root) -> Iterator[tuple[str, str]]:
    """Names below the root, and what is told of them."""
    yield BOOT_FILE, f"{BOOT_ID}\n"
    ledger = ledgers.peek(root)
    text = _ledger(ledger)
    if text:
        yield ledgers.FILE, text
    last = remembered.last(root)
    if last.at_s is not None:
        yield remembered.FILE, json.dumps({"boot_id": BOOT_ID, "last": _last_pass(last).to_json()})
    told = balloon.told(root)
    if told:
        yield balloon.FILE, json.dumps(told)
    if (seen := others.load(root)) is not None:
        yield others.FILE, _text({"boot_id": BOOT_ID, **others.document(seen)})
    counts = passes.load(root)
    drifts = {plugin: times for plugin, times in counts.drifts.items() if words.ours(plugin, "plugins")}
    yield passes.FILE, _text(replace(counts, drifts=drifts).to_json())
    yield refusals.FILE, _text({vmid: refused.times for vmid, refused in refusals.load(root).items()})


def _text(document: object) -> str:
    return json.dumps(document, default=dict)


def _ledger(ledger: Ledger) -> str:
    with tempfile.TemporaryDirectory(prefix="pxsched-") as directory:
        root = Root(directory)
        for name, text in ((BOOT_FILE, BOOT_ID), (f"{ledgers.DIR}/lock", "")):
            os.makedirs(os.path.dirname(root.path(name)), exist_ok=True)
            with open(root.path(name), "w") as stream:
                stream.write(text)
        with ledgers.locked(root) as copy:
            for vmid, claim in ledger.claims.items():
                copy.claims[vmid] = _claim(claim)
            for key, entry in ledger.journal.items():
                if _is_plain(key):
                    copy.journal[key] = _entry(entry)
            ledgers.save(root, copy)
        return (root.read_bytes(ledgers.FILE) or b"").decode("ascii")


def _claim(claim: Claim) -> Claim:
    placement, policy = claim.placement, claim.policy
    return replace(
        claim,
        placement=replace(placement, why=_sentences(placement.why, "placement", "node")),
        policy=replace(policy, governor=words.word(policy.governor), energy=words.word(policy.energy)),
        inherited=claim.inherited if words.understood(claim.inherited) else "",
        signature=_signature(claim.signature),
        source="",
        hookscript=claim.hookscript if is_ours(claim.hookscript) else "",
    )


def _signature(text: str) -> str:
    plain = text.replace(",", " ")
    return text if words.understood(plain, _SIGNATURE | words.KNOBS) else ""


def _entry(entry: Entry) -> Entry:
    return entry._replace(
        plugin=entry.plugin if words.ours(entry.plugin, "plugins") else "",
        original=_value(entry.original),
        wanted=_value(entry.wanted),
        note=LEFT_OUT if entry.note else "",
    )


def _value(text: str) -> str:
    """A knob's value; `?` for one that is neither number nor word of the kernel's."""
    return text if words.understood(text.replace(",", " "), words.KNOBS) else "?"


def _is_plain(key: str) -> bool:
    """Whether a knob's key names nothing but numbers, devices, and groups that every machine has."""
    try:
        from_key(key)
    except ValueError:
        return False
    kind, _, rest = key.partition(":")
    return kind in KINDS and all(map(_is_plain_part, rest.split(",")))


def _is_plain_part(part: str) -> bool:
    return words.understood(part, _GROUPS) or machine.is_plain_name(part)


_GROUPS = frozenset(
    (
        "init.scope", "system.slice", "user.slice", "machine.slice", "qemu.slice", "lxc",
        "halt_poll_ns", "AllowedCPUs", "AllowedMemoryNodes",
    )
)  # fmt: skip


def _last_pass(last: Last) -> Last:
    """Figures as they are; sentences where they are ours."""
    return replace(
        last,
        acted=_sentences(last.acted, "balance", "node"),
        skipped={vmid: _sentences([why], "balance", "node")[0] for vmid, why in last.skipped.items()},
    )


def _sentences(found: Iterable[str], *rooms: str) -> tuple[str, ...]:
    return tuple(line if words.ours(line, *rooms) else LEFT_OUT for line in found)
