"""Bootstrapped Debian roots with what an installation finds on a Proxmox node, entered in namespaces of
their own. Made once, kept in the user's cache.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

CHECKOUT = Path(__file__).parents[2]
PACKAGES = (
    "python3", "python3-filelock", "python3-proxmoxer", "python3-psutil", "python3-pyroute2",
    "python3-requests", "systemd",
    # For guests in a stand-in node, and `top`.
    "busybox-static", "python3-rich", "qemu-system-x86",
)  # fmt: skip
SUITES = ("bookworm", "trixie")
TOOLS = ("mmdebstrap", "unshare", "chroot", "mount")
BUILD_TOOLS = {
    "dpkg-buildpackage": "dpkg-dev", "dh": "debhelper", "dh_python3": "dh-python", "lintian": "lintian",
}  # fmt: skip


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root, to make Debian roots and enter them"
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"needs {', '.join(lacking)}" if lacking else ""


def base_system(suite: str, packages: tuple[str, ...] = PACKAGES) -> Path:
    """The unpacked base system; a bootstrap that is cut short leaves nothing that is taken for one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pxsched-tests"
    recipe = hashlib.sha256(repr(packages).encode()).hexdigest()[:12]
    path = cache / f"{suite}-{recipe}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{path.name}.lock"):
        if not path.exists():
            partial = cache / f"{path.name}.{os.getpid()}.partial"
            command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
            done = subprocess.run(
                [*command, suite, str(partial)], capture_output=True, text=True, timeout=1500
            )
            if done.returncode:
                shutil.rmtree(partial, ignore_errors=True)
                pytest.skip(f"no Debian {suite} can be bootstrapped: {done.stderr.strip()[-300:]}")
            partial.rename(path)
    return path


@contextmanager
def writable(base: Path, work: Path) -> Iterator[Path]:
    """A copy of a base system that may be changed: an overlay where the file system allows one."""
    for name in ("upper", "work", "root"):
        (work / name).mkdir()
    options = f"lowerdir={base},upperdir={work}/upper,workdir={work}/work"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(work / "root")]
    overlaid = subprocess.run(mount, capture_output=True).returncode == 0
    if not overlaid:
        subprocess.run(["cp", "-a", f"{base}/.", str(work / "root")], check=True)
    try:
        yield work / "root"
    finally:
        if overlaid:
            subprocess.run(["umount", "--lazy", str(work / "root")], check=True)
        for name in ("upper", "work", "root"):
            shutil.rmtree(work / name, ignore_errors=True)


class Machine:
    """A Debian root that looks like a Proxmox node called pve1."""

    def __init__(self, base: Path, suite: str) -> None:
        self.base = base
        self.suite = suite
        self.made_ns = time.time_ns()
        shutil.copytree(CHECKOUT, base / "checkout", symlinks=True, ignore=_what_git_does_not_know)
        for node in ("pve1", "pve2"):
            (base / f"etc/pve/nodes/{node}/qemu-server").mkdir(parents=True)
        (base / "etc/pve/local").symlink_to("nodes/pve1")
        shutil.copy(Path(__file__).parent / "files/pvesh", base / "usr/bin/pvesh")
        shutil.copy("/bin/true", base / "usr/bin/qm")

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, with its own /proc, /etc/pve mounted as pmxcfs would be, and without the
        outside's processes.
        """
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot", str(self.base)]
        mounts = "mount -t proc proc /proc; mount -t sysfs -o ro sysfs /sys; mount --bind /etc/pve /etc/pve"
        # Not `exec`: the first process of a namespace has no parent and cannot be killed from within.
        mount = ["/bin/sh", "-c", f'{mounts}; cd /checkout; "$@"; exit $?', "sh"]
        done = subprocess.run(
            [*enter, *mount, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
            | {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
            | environment,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} in {self.suite}: exit code {done.returncode}\n{done.stdout}")
        return done

    def _what(self, path: str) -> str:
        if os.path.islink(path):
            return os.readlink(path)
        status = os.stat(path)
        if status.st_ctime_ns < self.made_ns:
            return "of the base system"
        return f"{status.st_mode:o} {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"

    def path(self, relative: str) -> Path:
        return self.base / relative

    def vm(self, vmid: int, text: str = "", *, node: str = "pve1") -> Path:
        path = self.path(f"etc/pve/nodes/{node}/qemu-server/{vmid}.conf")
        path.write_text(f"cores: 2\n{text}")
        return path

    def files(self) -> dict[str, str]:
        """Every file but those of the checkout, of caches and of logs: path -> what it is. Of a file that is
        as old as the base system its age is enough.
        """
        passed_over = {"checkout", "proc", "sys", "tmp", "trap", "var/log", "var/cache"}
        passed_over |= {"var/lib/apt", "var/lib/dpkg"}
        found = {}
        for directory, names, files in os.walk(self.base):
            here = os.path.relpath(directory, self.base)
            if here in passed_over or os.path.basename(directory) == "__pycache__":
                names.clear()
                continue
            for name in [*files, *(n for n in names if os.path.islink(os.path.join(directory, n)))]:
                path = os.path.join(directory, name)
                found[os.path.normpath(f"{here}/{name}")] = self._what(path)
        return found


def _what_git_does_not_know(_directory: str, names: list[str]) -> set[str]:
    hidden = {name for name in names if name.startswith(".") and name not in (".ci",)}
    return hidden | {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}


@pytest.fixture(params=SUITES)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A fresh node of each Debian."""
    reason = _missing()
    if reason:
        pytest.skip(reason)
    with writable(base_system(request.param), tmp_path) as base:
        yield Machine(base, request.param)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this checkout."""
    missing = [name for tool, name in BUILD_TOOLS.items() if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    return build(tmp_path_factory.mktemp("build"))


def build(place: Path, umask: int = 0o022, **environment: str) -> Path:
    """The package of this checkout, whose files are as old as this very copy of them."""
    source = place / "pxsched"
    ignore, copy = _what_git_does_not_know, shutil.copy
    shutil.copytree(CHECKOUT, source, symlinks=True, ignore=ignore, copy_function=copy)
    done = subprocess.run(
        ["dpkg-buildpackage", "-us", "-uc", "-b"],
        cwd=source, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
        env={**os.environ, **environment}, umask=umask,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    [path] = place.glob("pxsched_*_all.deb")
    return path
