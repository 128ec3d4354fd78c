"""Device interrupts: the table /proc/interrupts, a device's vectors, and where each one goes.

Rules: Documentation/core-api/irq/irq-affinity.rst, show_interrupts() in kernel/irq/proc.c for the table, and
vfio_pci_intrs.c for the names of a passed-through device's vectors.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile

from pxsched.host.devices import PCI_DIR, Device
from pxsched.root import Root
from pxsched.value import Value

TABLE = "proc/interrupts"
IRQ_DIR = "proc/irq"
_ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_VFIO = re.compile(rf"vfio-(?:msix?\[(\d{{1,5}})\]|intx)\(({_ADDRESS})\)", re.ASCII)
_ANY_ADDRESS = re.compile(rf"(?<![0-9a-f]){_ADDRESS}(?![0-9a-f])", re.ASCII)
# `2-edge`, `1-fasteoi`, `0-edge-msi`; ARM writes number and trigger apart.
_HWIRQ = re.compile(r"(?:0x)?[0-9a-f]*\d[0-9a-f]*-\w+\S*", re.ASCII)
_TRIGGERS = ("Edge", "Level", "None")
# What else is in /proc/irq/N (register_irq_proc() in kernel/irq/proc.c).
_FILES = frozenset(
    (
        *("smp_affinity", "smp_affinity_list", "effective_affinity", "effective_affinity_list"),
        *("affinity_hint", "node", "spurious"),
    )
)


class Row(Value):
    """A numbered line of the table. counts: by position, as many as the line has; the columns' CPUs are the
    table's. actions: the names that drivers gave, empty for an interrupt nobody handles.
    """

    number: int
    counts: tuple[int, ...]
    chip: str
    actions: tuple[str, ...]

    @property
    def address(self) -> str:
        """The PCI function that the chip's or an action's name tells; empty where none does."""
        for text in (*self.actions, self.chip):
            if match := _ANY_ADDRESS.search(text):
                return match[0]
        return ""


class Table(Value):
    """/proc/interrupts. cpus: which CPU each column is; offline ones have none, so position is not number."""

    cpus: tuple[int, ...]
    rows: tuple[Row, ...]


class Interrupt(Value):
    """One interrupt. names: what its drivers call it. device, index: which vector of which passed-through
    function it is; an interrupt of the host has no device.

    affinity, effective: the CPUs that were asked for, and those the hardware uses, in the kernel's list form.
    """

    number: int
    names: tuple[str, ...]
    device: str = ""
    index: int = 0
    affinity: str = ""
    effective: str = ""

    @property
    def identity(self) -> str:
        """What tells it from a later one with the same number; vfio's names hold vector and address."""
        return identity(self.names)


def parse(text: str) -> Table:
    """The table. Lines that are not of its form are passed over."""
    lines = text.splitlines()
    header = lines[0].split() if lines else []
    if not header or not all(re.fullmatch(r"CPU\d+", word) for word in header):
        # Without a header (an excerpt) every leading number is a count.
        return Table((), tuple(_rows(lines, None)))
    cpus = tuple(int(word.removeprefix("CPU")) for word in header)
    return Table(cpus, tuple(_rows(lines[1:], len(cpus))))


def _rows(lines: Iterable[str], columns: int | None) -> Iterator[Row]:
    for line in lines:
        number, colon, rest = line.strip().partition(":")
        if not colon or not number.isdecimal():
            continue
        words = rest.split()
        counts = tuple(int(word) for word in takewhile(str.isdecimal, words[:columns]))
        chip, actions = _description(words[len(counts) :])
        yield Row(int(number), counts, chip, actions)


def _description(words: list[str]) -> tuple[str, tuple[str, ...]]:
    """Chip, then perhaps the number at the chip, then the drivers' names, which may contain blanks."""
    if not words:
        return "", ()
    chip, rest = words[0], words[1:]
    if rest and _HWIRQ.fullmatch(rest[0]):
        rest = rest[1:]
    elif len(rest) > 1 and rest[0].isdecimal() and rest[1] in _TRIGGERS:
        rest = rest[2:]
    actions = " ".join(rest)
    return chip, tuple(action.strip() for action in actions.split(", ") if action.strip())


def identity(actions: Iterable[str]) -> str:
    """Drivers' names as a part of a knob's key: one word, without commas."""
    return re.sub(r"[^\w.:@()\[\]+-]", "_", "+".join(sorted(actions)), flags=re.ASCII)


def of_devices(root: Root, devices: Iterable[Device]) -> tuple[Interrupt, ...]:
    """The interrupts that now serve these passed-through devices, by device and vector.

    Nothing is read where there is no device. A device whose guest driver has not enabled any vector has none.
    """
    found: list[Interrupt] = []
    table: dict[str, list[Interrupt]] | None = None
    for device in devices:
        if device.mdev:
            continue
        vectors = _of_device(root, device.address)
        if not vectors:
            table = _from_table(root) if table is None else table
            vectors = table.get(device.address, [])
        found += sorted(vectors, key=lambda interrupt: (interrupt.index, interrupt.number))
    return tuple(found)


def _of_device(root: Root, address: str) -> list[Interrupt]:
    """By msi_irqs, else the one legacy line; far cheaper than the table on a machine with many CPUs."""
    numbers = [int(name) for name in root.list(f"{PCI_DIR}/{address}/msi_irqs") if name.isdecimal()]
    if not numbers:
        legacy = root.read(f"{PCI_DIR}/{address}/irq") or ""
        numbers = [int(legacy)] if legacy.isdecimal() and legacy != "0" else []
    vectors = (_vector(root, number, name) for number in numbers for name in names_of(root, number))
    return [vector for vector in vectors if vector is not None and vector.device == address]


def _from_table(root: Root) -> dict[str, list[Interrupt]]:
    found: dict[str, list[Interrupt]] = {}
    for row in parse(root.read(TABLE) or "").rows:
        vectors = (_vector(root, row.number, action) for action in row.actions)
        for vector in vectors:
            if vector is not None:
                found.setdefault(vector.device, []).append(vector)
    return found


def _vector(root: Root, number: int, name: str) -> Interrupt | None:
    match = _VFIO.fullmatch(name)
    return None if match is None else _read(root, number, (name,), match[2], int(match[1] or 0))


def of_host(root: Root) -> tuple[Interrupt, ...]:
    """All interrupts that some driver of the host handles, without `effective`; not those of passed-through
    devices.
    """
    found = []
    for number in sorted(int(name) for name in root.list(IRQ_DIR) if name.isdecimal()):
        names = names_of(root, number)
        if names and not any(_VFIO.fullmatch(name) for name in names):
            affinity = root.read(f"{IRQ_DIR}/{number}/smp_affinity_list") or ""
            found.append(Interrupt(number, tuple(names), affinity=affinity))
    return tuple(found)


def names_of(root: Root, number: int) -> list[str]:
    """What drivers call an interrupt: directories in /proc/irq/N; captures may have the table only."""
    names = [name for name in root.list(f"{IRQ_DIR}/{number}") if name not in _FILES]
    if not names and not root.live:
        rows = (row for row in parse(root.read(TABLE) or "").rows if row.number == number)
        names = [action for row in rows for action in row.actions]
    return names


def present(root: Root, number: int, name: str) -> bool:
    """Whether the interrupt with this number is still the one of this identity."""
    names = names_of(root, number)
    return identity(names) == name or any(identity((one,)) == name for one in names)


def _read(root: Root, number: int, names: tuple[str, ...], device: str, index: int) -> Interrupt:
    directory = f"{IRQ_DIR}/{number}"
    affinity = root.read(f"{directory}/smp_affinity_list") or ""
    effective = root.read(f"{directory}/effective_affinity_list") or ""
    return Interrupt(number, names, device, index, affinity, effective)


def served(root: Root, cpus: Collection[int]) -> int | None:
    """How many device interrupts these CPUs have served since the machine began; None where none says so."""
    table = parse(root.read(TABLE) or "")
    places = [place for place, cpu in enumerate(table.cpus) if cpu in cpus]
    if not places:
        return None
    return sum(row.counts[place] for row in table.rows for place in places if place < len(row.counts))
