"""The CPUs of pinned and dedicated VMs run with the governor and energy preference that their policies name.

CPUs that share a frequency policy can only be governed together: the most performant wish counts, and when
the VM that had it leaves, the next one does.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from pxsched.host import frequency
from pxsched.host.frequency import FrequencyPolicy
from pxsched.knobs.frequency import EnergyPreference, Governor, joined
from pxsched.ledger.claim import Claim
from pxsched.ledger.journal import NODE
from pxsched.placement.request import EXCLUSIVE
from pxsched.plugins.view import HostView, Setting

NAME = "governor"


def cpus(claims: Mapping[int, Claim]) -> frozenset[int]:
    """The CPUs whose frequency policies matter; none when nobody wishes anything."""
    return frozenset().union(*(claim.placement.cpus for claim in _wishing(claims)))


def of_node(host: HostView) -> Iterator[Setting]:
    for policy in host.frequency:
        claims = [claim for claim in _wishing(host.claims) if claim.placement.cpus & policy.cpus]
        governors = {claim.policy.governor for claim in claims} - {""}
        if governors and policy.governor:
            want = _best(governors, policy.governors, frequency.performance_of_governor)
            yield Setting(Governor(policy.id), want, NODE, NAME, _free(policy, host.node.governor_free))
        preferences = {claim.policy.energy for claim in claims} - {""}
        if preferences and policy.preference:
            want = _best(preferences, policy.preferences, frequency.performance_of_preference)
            yield Setting(EnergyPreference(policy.id), want, NODE, NAME)


def _wishing(claims: Mapping[int, Claim]) -> Iterator[Claim]:
    for claim in claims.values():
        if claim.placement.vm_class in EXCLUSIVE and (claim.policy.governor or claim.policy.energy):
            yield claim


def _best(wishes: Iterable[str], available: tuple[str, ...], rank: Callable[[str], int]) -> str:
    """The most performant wish that can be had; when none can, the knob will say what could."""
    ordered = sorted(wishes, key=lambda name: (rank(name), name))
    return next((name for name in ordered if name in available or name.isdecimal()), ordered[0])


def _free(policy: FrequencyPolicy, governor: str) -> str | None:
    """What the admin wants CPUs to have that are given back; None: what they had."""
    return joined(governor, policy.preference) if governor in policy.governors else None
