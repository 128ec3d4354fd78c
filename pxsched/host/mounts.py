"""What is mounted where, by the kernel's word.

Rules: proc(5), /proc/PID/mounts: device, mount point and type in words; a blank in a name is written \\040.
"""

from pxsched.errors import UserError
from pxsched.root import Root

CLUSTER = "etc/pve"


def is_mounted(root: Root, path: str) -> bool | None:
    """Whether something is mounted on this directory, named below the root; None where nothing says."""
    text = root.read("proc/mounts")
    if text is None:
        return None
    wanted = root.path(path).rstrip("/") if root.live else f"/{path.strip('/')}"
    points = (words[1] for line in text.splitlines() if len(words := line.split()) > 2)
    return any(_unescaped(point) == wanted for point in points)


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
