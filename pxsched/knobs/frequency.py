"""How a frequency policy is governed: its governor, and its preference between energy and performance."""

import errno

from pxsched.host import frequency
from pxsched.knobs import file
from pxsched.knobs.knob import Knob, Rank, in_words
from pxsched.root import Root

# store_energy_performance_preference() in drivers/cpufreq/intel_pstate.c and amd-pstate.c
_REFUSALS = {errno.EBUSY: "the governor performance takes no other preference"}


class Governor(Knob):
    """`performance` also forces the energy preference, and amd-pstate leaves it so afterwards: the original
    therefore names both, `powersave balance_performance`, and a preference that was forced is put back, too.
    """

    kind = "governor"

    policy: int

    def label(self, root: Root) -> str:
        return f"governor of frequency policy {self.policy}"

    def read(self, root: Root) -> str:
        return file.read(root, f"{frequency.directory(root, self.policy)}/{frequency.GOVERNOR}")

    def original(self, root: Root) -> str:
        return joined(self.read(root), self._preference(root))

    def write(self, root: Root, value: str) -> None:
        governor, _, preference = value.partition(" ")
        base = frequency.directory(root, self.policy)
        _check(root, f"{base}/scaling_available_governors", governor)
        file.write(root, f"{base}/{frequency.GOVERNOR}", governor)
        if preference != "performance" == self._preference(root) and preference:
            file.write(root, f"{base}/{frequency.PREFERENCE}", preference)

    def same(self, now: str, want: str) -> bool:
        return now.partition(" ")[0] == want.partition(" ")[0]

    def _preference(self, root: Root) -> str:
        return root.read(f"{frequency.directory(root, self.policy)}/{frequency.PREFERENCE}") or ""


class EnergyPreference(Knob):
    """Under the governor `performance` the kernel takes no other value: it comes after the governor."""

    kind = "energy"
    rank = Rank.FOLLOWER

    policy: int

    def label(self, root: Root) -> str:
        return f"energy preference of frequency policy {self.policy}"

    def read(self, root: Root) -> str:
        return file.read(root, f"{frequency.directory(root, self.policy)}/{frequency.PREFERENCE}")

    def write(self, root: Root, value: str) -> None:
        base = frequency.directory(root, self.policy)
        if not value.isdecimal():
            _check(root, f"{base}/energy_performance_available_preferences", value)
        with in_words(_REFUSALS):
            file.write(root, f"{base}/{frequency.PREFERENCE}", value)


def joined(governor: str, preference: str) -> str:
    """The original of a Governor: both words, or the one there is."""
    return f"{governor} {preference}".strip()


def _check(root: Root, path: str, value: str) -> None:
    """Says what could be had instead; the kernel itself only answers EINVAL."""
    available = (root.read(path) or "").split()
    if available and value not in available:
        raise OSError(errno.EINVAL, f"available are {' '.join(available)}")
