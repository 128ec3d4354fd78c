"""What one NUMA node can give to one VM: from which L3 groups, which cores, which siblings.

All under one wish about SMT siblings: `prefer` and `require` take whole cores that no other dedicated VM
touches, `isolate` one CPU of each such core, `share` any free CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pxsched.placement.machine import Cell, Machine
from pxsched.policy import Smt


@dataclass(frozen=True, slots=True)
class Fill:
    """CPUs chosen on one node. groups: their L3 groups; broken: untouched L3 groups that are now partly
    used; leftover: CPUs still free in the chosen groups; disturbed: demand of shared VMs living there;
    joined: cores that another VM has part of.
    """

    mask: int
    groups: frozenset[int]
    broken: int
    leftover: int
    disturbed: float
    joined: int


@dataclass(frozen=True, slots=True)
class Stock:
    """One cell's usable CPUs. whole: nothing of the cell is in use. alone: how many of the CPUs are on cores
    that no other VM has part of.
    """

    cell: Cell
    mask: int
    capacity: int
    alone: int
    whole: bool
    disturbed: float


def usable_for(machine: Machine, pool: int, busy: int, smt: Smt) -> int:
    """The CPUs of `pool` that a VM with this wish can use; every one of them holds one vCPU.

    busy: CPUs whose siblings `isolate` cannot have.
    """
    if smt is Smt.REQUIRE:
        usable = 0
        for core in machine.cores:
            if core & ~pool == 0 and core.bit_count() > 1:
                usable |= core
        return usable
    if smt is Smt.ISOLATE and machine.threads > 1:
        usable = 0
        for core in machine.cores:
            inside = core & pool
            if inside and not core & busy:
                usable |= inside & -inside
        return usable
    return pool


def stocks_of(
    cells: Sequence[Cell], usable: int, taken: int, touched: int, crowd: Callable[[int], float]
) -> list[Stock]:
    """touched: CPUs on cores of which another VM has part."""
    found = []
    for cell in cells:
        mask = usable & cell.mask
        if mask:
            whole = not taken & cell.mask
            alone = (mask & ~touched).bit_count()
            found.append(Stock(cell, mask, mask.bit_count(), alone, whole, crowd(cell.mask)))
    return found


def fill(stocks: Sequence[Stock], count: int, touched: int) -> Fill | None:
    """`count` CPUs from the fewest L3 groups, those it leaves least of; None when there are too few."""
    if count == 0:
        return Fill(0, frozenset(), 0, 0, 0.0, 0)
    chosen = _groups(stocks, count)
    if chosen is None:
        return None
    # The group that keeps free CPUs is the one with most of them: the others are used up.
    chosen = sorted(chosen, key=lambda stock: (stock.capacity, stock.cell.mask & -stock.cell.mask))
    mask, left = 0, count
    for stock in chosen:
        part = min(left, stock.capacity)
        mask |= _cores(stock, part, touched)
        left -= part
    last = chosen[-1]
    leftover = sum(stock.capacity for stock in chosen) - count
    return Fill(
        mask=mask,
        groups=frozenset(stock.cell.group for stock in chosen),
        broken=int(last.whole and leftover > 0),
        leftover=leftover,
        disturbed=sum(stock.disturbed for stock in chosen),
        joined=_joined(chosen, mask & touched),
    )


def _groups(stocks: Sequence[Stock], count: int) -> list[Stock] | None:
    """The fewest groups that hold `count`; among those sets the one with fewest CPUs to spare."""
    largest = sorted((stock.capacity for stock in stocks), reverse=True)
    fewest = total = 0
    while total < count:
        if fewest == len(largest):
            return None
        total += largest[fewest]
        fewest += 1
    # Those that are better kept come last, for the walk below leaves out what it can, from the end.
    ordered = sorted(stocks, key=_keeping)
    if fewest == 1:
        fitting = [stock for stock in ordered if stock.capacity >= count]
        return [min(fitting, key=lambda stock: (max(0, count - stock.alone), stock.capacity))]
    return _exactly(ordered, fewest, count)


def _keeping(stock: Stock) -> tuple[bool, float, int]:
    return (stock.whole, stock.disturbed, stock.cell.mask & -stock.cell.mask)


def _exactly(ordered: Sequence[Stock], size: int, count: int) -> list[Stock]:
    """`size` of the groups with the smallest sum that is at least `count`.

    reach[i][j]: the sums that j of the first i groups can have, one bit each.
    """
    reach = [[1] + [0] * size]
    for stock in ordered:
        before = reach[-1]
        reach.append([1] + [before[j] | before[j - 1] << stock.capacity for j in range(1, size + 1)])
    sums = reach[-1][size] >> count
    total = count + (sums & -sums).bit_length() - 1
    chosen: list[Stock] = []
    left = size
    for position in range(len(ordered), 0, -1):
        if reach[position - 1][left] >> total & 1:
            continue
        chosen.append(ordered[position - 1])
        total -= ordered[position - 1].capacity
        left -= 1
    return chosen


def _joined(chosen: Sequence[Stock], shared: int) -> int:
    """How many cores the CPUs in `shared` are on."""
    if not shared:
        return 0
    return sum(1 for stock in chosen for core in stock.cell.cores if core & shared)


def _cores(stock: Stock, count: int, touched: int) -> int:
    """`count` CPUs of one cell: whole cores first, then the core that is left least of; what another VM has
    part of only where nothing else is left.
    """
    if count == stock.capacity:
        return stock.mask
    if stock.alone >= count and stock.mask & touched:
        stock = replace(stock, mask=stock.mask & ~touched, capacity=stock.alone)
        return _cores(stock, count, 0)
    cores = [core & stock.mask for core in stock.cell.cores if core & stock.mask]
    # Stable: among cores of one size the lower one comes first.
    cores.sort(key=int.bit_count, reverse=True)
    picked, left = 0, count
    broken = 0
    for core in cores:
        size = core.bit_count()
        if size <= left:
            picked |= core
            left -= size
        elif left and (not broken or size < broken.bit_count()):
            broken = core
        if not left:
            return picked
    while left:
        low = broken & -broken
        picked |= low
        broken ^= low
        left -= 1
    return picked
