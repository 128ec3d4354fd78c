"""A VM's processors as lines and as JSON: what its guest is told, beside where they run."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pxsched.guest.arguments import Smp
from pxsched.host import cpulist
from pxsched.shape.differences import summary
from pxsched.shape.picture import Picture, Seat, runs


def pictures(seen: Picture, real: Picture, seats: Sequence[Seat]) -> list[str]:
    """Both beside each other: a line an L3 group, with a bracket for each core."""
    left = ["as its guest sees it", *_rows(seen, [str(vcpu) for vcpu in range(len(seen.cores))])]
    right = [
        "where it runs (vCPU@CPU)",
        *_rows(real, [f"{vcpu}@{seat.cpu}" for vcpu, seat in enumerate(seats)]),
    ]
    width = max(map(len, left))
    return [f"  {one:<{width}}  |  {other}".rstrip() for one, other in zip_longest(left, right, fillvalue="")]


def _rows(picture: Picture, names: Sequence[str]) -> list[str]:
    lines = []
    for number, node in enumerate(runs(picture.nodes)):
        lines.append(f"NUMA node {number}")
        within = [[vcpu for vcpu in group if vcpu in node] for group in runs(picture.l3s)]
        for group in filter(None, within):
            cores = [[vcpu for vcpu in core if vcpu in group] for core in runs(picture.cores)]
            text = " ".join(f"[{' '.join(names[vcpu] for vcpu in core)}]" for core in cores if core)
            lines.append(f"  L3 {text}")
    return lines


def heading(vmid: int, seen: Picture | None, real: Picture | None) -> list[str]:
    lines = [f"VM {vmid}"]
    if real is not None:
        lines.append(f"  runs on        {summary(real)}")
    if seen is not None:
        lines.append(f"  its guest sees {summary(seen)}")
    return lines


def diff(options: Mapping[str, str], changes: Mapping[str, str | None]) -> list[str]:
    """The options that change, before and after."""
    lines = []
    for key in sorted(changes):
        lines += [f"  - {key}: {options[key]}"] if key in options else []
        lines += [f"  + {key}: {changes[key]}"] if changes[key] is not None else []
    return lines


def smp_document(smp: Smp) -> dict[str, int]:
    return {
        "vcpus": smp.cpus,
        "sockets": smp.sockets,
        "dies": smp.dies,
        "cores": smp.cores,
        "threads": smp.threads,
        "maxcpus": smp.maxcpus,
    }


def picture_document(picture: Picture) -> dict[str, list[str]]:
    """Which vCPUs share what."""
    return {
        name: [cpulist.format(group) for group in runs(parts)]
        for name, parts in (("cores", picture.cores), ("l3", picture.l3s), ("nodes", picture.nodes))
    }


def changes_document(options: Mapping[str, str], changes: Mapping[str, str | None]) -> list[dict[str, Any]]:
    return [{"option": key, "now": options.get(key), "want": changes[key]} for key in sorted(changes)]
