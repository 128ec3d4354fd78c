"""What is mounted where, by the kernel's word.

Rules: proc(5), /proc/PID/mounts: device, mount point, type and options; a blank in a name is written \\040.
"""

from pxsched.errors import UserError
from pxsched.root import Root

CLUSTER = "etc/pve"


def is_mounted(root: Root, path: str) -> bool | None:
    """Whether something is mounted on this directory, named below the root; None where nothing says."""
    points = _points(root)
    return None if points is None else any(point == _named(root, path) for point, _options in points)


def is_barred(root: Root, path: str) -> bool:
    """Whether no program can be run from here: the file system that it is on is mounted `noexec`."""
    wanted = _named(root, path)
    above = [
        (len(point), number, "noexec" in options)
        for number, (point, options) in enumerate(_points(root) or ())
        if f"{wanted}/".startswith(f"{point.rstrip('/')}/")
    ]
    return max(above, default=(0, 0, False))[2]


def _points(root: Root) -> list[tuple[str, list[str]]] | None:
    """Mount points and their options, in the order of mounting: a later one hides an earlier one."""
    text = root.read("proc/mounts")
    if text is None:
        return None
    lines = (line.split() for line in text.splitlines())
    return [(_unescaped(words[1]), words[3:4] and words[3].split(",")) for words in lines if len(words) > 2]


def _named(root: Root, path: str) -> str:
    return root.path(path).rstrip("/") if root.live else f"/{path.strip('/')}"


def check_cluster(root: Root) -> None:
    """Raises UserError while the cluster's file system is not mounted on a running node: what is written to
    the directory below it then is seen by nobody, and hidden once pve-cluster is back.
    """
    if root.base == "/" and is_mounted(root, CLUSTER) is False:
        raise UserError(f"/{CLUSTER} is not mounted", hint="systemctl start pve-cluster")


def _unescaped(point: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, char)
    return point
