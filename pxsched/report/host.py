"""The host at this moment, for people: how busy its CPUs are, and how much memory is left."""

from pxsched.root import Root
from pxsched.value import Value

# The CPUs are watched for so long.
LOOK_S = 0.1


class HostNow(Value):
    """cpu_percent: how busy each online CPU was over a tenth of a second, in their order."""

    cpu_percent: tuple[float, ...]
    memory_total_bytes: int
    memory_available_bytes: int

    @property
    def line(self) -> str:
        busy, available = sum(self.cpu_percent) / 100, self.memory_available_bytes / 2**30
        return (
            f"host: {busy:.1f} of {len(self.cpu_percent)} CPUs busy, "
            f"{available:.1f} of {self.memory_total_bytes / 2**30:.1f} GiB available"
        )


def look(root: Root) -> HostNow | None:
    """None for a captured machine."""
    if not root.live:
        return None
    import psutil

    memory = psutil.virtual_memory()
    return HostNow(tuple(psutil.cpu_percent(LOOK_S, percpu=True)), memory.total, memory.available)
