"""What is remembered between passes, read back from text that may be damaged: that costs a pass, no more."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def by_vmid(value: object, parse: Callable[[Any], T]) -> dict[int, T]:
    """The records by VMID; none at all where any of them is damaged.

    parse: raises TypeError or ValueError at a damaged one.
    """
    if not isinstance(value, dict):
        return {}
    try:
        return {int(vmid): parse(body) for vmid, body in value.items()}
    except (TypeError, ValueError):
        return {}
