"""CPU frequency policies: which CPUs share one, its governors and energy preferences.

Rules: Documentation/admin-guide/pm/cpufreq.rst (policyN, related_cpus, scaling_available_governors),
intel_pstate.rst and amd-pstate.rst (energy_performance_preference, in their active modes only).
"""

import re
from collections.abc import Iterable

from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.root import Root
from pxsched.value import Value

CPU_DIR = "sys/devices/system/cpu"
GOVERNOR = "scaling_governor"
PREFERENCE = "energy_performance_preference"

# Most performant first. What is not listed comes last; numbers are energy preferences from 0 to 255.
_GOVERNORS = ("performance", "ondemand", "schedutil", "conservative", "userspace", "powersave")
_PREFERENCES = {
    "performance": 0,
    "balance_performance": 128,
    "default": 160,
    "balance_power": 192,
    "power": 255,
}


class FrequencyPolicy(Value):
    """CPUs whose frequency is governed together. preference: empty where the driver has none."""

    id: int
    cpus: frozenset[int]
    governor: str
    governors: tuple[str, ...]
    preference: str = ""
    preferences: tuple[str, ...] = ()


def read(root: Root, cpus: Iterable[int]) -> tuple[FrequencyPolicy, ...]:
    """The policies that govern these CPUs, ascending; none where the kernel governs no frequency.

    Only what is asked for is read: a machine of 512 CPUs has as many policies.
    """
    found: dict[int, FrequencyPolicy] = {}
    covered: set[int] = set()
    for cpu in sorted(cpus):
        if cpu in covered:
            continue
        shared = _cpus(root, f"{CPU_DIR}/cpu{cpu}/cpufreq")
        if cpu not in shared:
            continue
        policy = _policy(root, shared)
        covered |= shared
        found[policy.id] = policy
    return tuple(found[number] for number in sorted(found))


def directory(root: Root, policy: int) -> str:
    """Where a policy's files are; before Linux 4.3 with the CPU it is named after."""
    own = f"{CPU_DIR}/cpufreq/policy{policy}"
    return own if root.exists(own) else f"{CPU_DIR}/cpu{policy}/cpufreq"


def performance_of_governor(name: str) -> int:
    """The lower, the more performant."""
    return _GOVERNORS.index(name) if name in _GOVERNORS else len(_GOVERNORS)


def performance_of_preference(name: str) -> int:
    """The lower, the more performant; a number is its own rank."""
    if re.fullmatch(r"\d{1,3}", name, re.ASCII):
        return int(name)
    return _PREFERENCES.get(name, 256)


def _cpus(root: Root, base: str) -> frozenset[int]:
    """related_cpus is a list separated by spaces, offline CPUs included."""
    try:
        return cpulist.parse((root.read(f"{base}/related_cpus") or "").replace(" ", ","))
    except UserError:
        return frozenset()


def _policy(root: Root, cpus: frozenset[int]) -> FrequencyPolicy:
    base = next(
        (directory(root, cpu) for cpu in sorted(cpus) if root.exists(f"{CPU_DIR}/cpufreq/policy{cpu}")),
        directory(root, min(cpus)),
    )
    number = int(re.sub(r"\D", "", base.removeprefix(CPU_DIR)))
    return FrequencyPolicy(
        id=number,
        cpus=cpus,
        governor=root.read(f"{base}/{GOVERNOR}") or "",
        governors=tuple((root.read(f"{base}/scaling_available_governors") or "").split()),
        preference=root.read(f"{base}/{PREFERENCE}") or "",
        preferences=tuple((root.read(f"{base}/energy_performance_available_preferences") or "").split()),
    )
