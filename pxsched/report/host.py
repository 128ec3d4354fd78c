"""The host at this moment, for people: how busy its CPUs are, and how much memory is left."""

from pxsched.root import Root

# The CPUs are watched for so long.
LOOK_S = 0.1


def document(root: Root) -> dict[str, object] | None:
    """cpu_percent: how busy each CPU was over a tenth of a second. None for a captured machine."""
    if not root.live:
        return None
    import psutil

    memory = psutil.virtual_memory()
    return {
        "cpu_percent": psutil.cpu_percent(LOOK_S, percpu=True),
        "memory_total_bytes": memory.total,
        "memory_available_bytes": memory.available,
    }


def line(document: dict[str, object] | None) -> str | None:
    """The same in one line."""
    if document is None:
        return None
    busy, total, available = (
        document["cpu_percent"], document["memory_total_bytes"], document["memory_available_bytes"]
    )  # fmt: skip
    assert isinstance(busy, list) and isinstance(total, int) and isinstance(available, int)
    return (
        f"host: {sum(busy) / 100:.1f} of {len(busy)} CPUs busy, "
        f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB available"
    )
