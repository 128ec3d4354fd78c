"""What one NUMA node can give to one VM: from which L3 groups, which cores, which siblings.

All under one wish about SMT siblings: `prefer` and `require` take whole cores that no other dedicated VM
touches, `isolate` one CPU of each such core, `share` any free CPU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pxsched.placement.machine import Cell, Machine
from pxsched.settings.policy import Smt


class Fill(NamedTuple):
    """CPUs chosen on one node. groups: their L3 groups; broken: untouched L3 groups that are now partly
    used; leftover: CPUs still free in the chosen groups; disturbed: demand of shared VMs living there;
    joined: cores that somebody else has part of.
    """

    mask: int
    groups: frozenset[int]
    broken: int
    leftover: int
    disturbed: float
    joined: int


class Stock(NamedTuple):
    """One cell's usable CPUs. whole: nothing of the cell is in use. alone: how many of the CPUs are on cores
    that nobody else has part of.
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
    """touched: CPUs on cores of which somebody else has part."""
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
    leftover = sum(stock.capacity for stock in chosen) - count
    # All are used up but the last, which keeps what is left over: one that is broken already, if any is.
    chosen = sorted(chosen, key=lambda stock: (not stock.whole, stock.capacity, -stock.cell.mask))
    mask = 0
    for stock, part in zip(chosen, _parts(chosen, count), strict=True):
        mask |= _cores(stock, part, touched)
    last = chosen[-1]
    return Fill(
        mask=mask,
        groups=frozenset(stock.cell.group for stock in chosen),
        broken=int(last.whole and leftover > 0),
        leftover=leftover,
        disturbed=sum(stock.disturbed for stock in chosen),
        joined=_joined(chosen, mask & touched),
    )


def _groups(stocks: Sequence[Stock], count: int) -> list[Stock] | None:
    """The fewest groups that hold `count`; among those sets the one that joins fewest cores of others, breaks
    no whole group, disturbs least, and has fewest CPUs to spare.
    """
    largest = sorted((stock.capacity for stock in stocks), reverse=True)
    fewest = total = 0
    while total < count:
        if fewest == len(largest):
            return None
        total += largest[fewest]
        fewest += 1
    if fewest == 1:
        fitting = [stock for stock in stocks if stock.capacity >= count]
        return [min(fitting, key=lambda stock: _single(stock, count))]
    if sum(stock.alone for stock in stocks) < sum(largest):
        emptiest = sorted(stocks, key=lambda stock: (-stock.alone, -stock.capacity))[:fewest]
        if sum(stock.capacity for stock in emptiest) >= count:
            return emptiest
    # Those that are better kept come last, for the walk leaves out what it can, from the end.
    return _exactly(sorted(stocks, key=_keeping), fewest, count)


def _single(stock: Stock, count: int) -> tuple[int, bool, float, int, int]:
    breaks = stock.whole and stock.capacity > count
    joined = max(0, count - stock.alone)
    return (joined, breaks, stock.disturbed, stock.capacity, stock.cell.mask & -stock.cell.mask)


def _parts(chosen: Sequence[Stock], count: int) -> list[int]:
    """How many CPUs each group gives, in order: first those on cores of their own, then the others."""
    parts = []
    for stock in chosen:
        parts.append(min(count, stock.alone))
        count -= parts[-1]
    for position, stock in enumerate(chosen):
        more = min(count, stock.capacity - parts[position])
        parts[position] += more
        count -= more
    return parts


def _keeping(stock: Stock) -> tuple[bool, float, int]:
    return (stock.whole, stock.disturbed, stock.cell.mask & -stock.cell.mask)


def _exactly(ordered: Sequence[Stock], size: int, count: int) -> list[Stock]:
    """`size` of the groups with the smallest sum that is at least `count`, one of them broken already unless
    the sum is exact: what is left over can be left in any of them.

    reach[i][j]: the sums that j of the first i groups can have, one bit each; `partly` the same for sets with
    a broken group in them.
    """
    reach = [[1] + [0] * size]
    partly = [[0] * (size + 1)]
    for stock in ordered:
        before, mixed = reach[-1], partly[-1]
        add = mixed if stock.whole else before
        reach.append([1] + [before[j] | before[j - 1] << stock.capacity for j in range(1, size + 1)])
        partly.append([0] + [mixed[j] | add[j - 1] << stock.capacity for j in range(1, size + 1)])
    any_sum, broken_sum = _lowest(reach[-1][size], count), _lowest(partly[-1][size], count)
    broken = any_sum != count and broken_sum is not None
    total = broken_sum if broken and broken_sum is not None else any_sum
    assert total is not None, "the fewest groups hold the VM"
    chosen: list[Stock] = []
    left = size
    for position in range(len(ordered), 0, -1):
        table = partly if broken else reach
        if table[position - 1][left] >> total & 1:
            continue
        stock = ordered[position - 1]
        chosen.append(stock)
        total -= stock.capacity
        left -= 1
        broken = broken and stock.whole
    return chosen


def _lowest(sums: int, count: int) -> int | None:
    """The smallest of the sums that is at least `count`."""
    rest = sums >> count
    return count + (rest & -rest).bit_length() - 1 if rest else None


def _joined(chosen: Sequence[Stock], shared: int) -> int:
    """How many cores the CPUs in `shared` are on."""
    if not shared:
        return 0
    return sum(1 for stock in chosen for core in stock.cell.cores if core & shared)


def _cores(stock: Stock, count: int, touched: int) -> int:
    """`count` CPUs of one cell: whole cores first, then the core that is left least of; what somebody
    else has part of only where nothing else is left.
    """
    if count == stock.capacity:
        return stock.mask
    if stock.alone >= count and stock.mask & touched:
        stock = stock._replace(mask=stock.mask & ~touched, capacity=stock.alone)
        return _cores(stock, count, 0)
    cores = [core & stock.mask for core in stock.cell.cores if core & stock.mask]
    # Stable: among cores of one size the lower one comes first.
    cores.sort(key=lambda core: (-(core & touched).bit_count(), core.bit_count()), reverse=True)
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
