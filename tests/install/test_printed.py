"""Every command that README, pages for users and help texts print is run as it is printed, from each way
to have pxsched: the checkout, a wheel, install.sh and the Debian package, the last two on Debian 12 and 13.

A stand-in node is what they see, with two VMs; what needs a Proxmox node finds the one of `conftest`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxsched import cli

from .conftest import CHECKOUT, _what_git_does_not_know

WORDS = r"(?:pxsched|\./install\.sh|\./tests/run|\.ci/run|qm|apt|apt-get|systemctl|dpkg-buildpackage|mkdir)"
COMMAND = re.compile(rf"(?:[A-Z_]+='[^']*' )?{WORDS} .*|\.\S+", re.ASCII)

_DOCS = ("rollout", "placement", "balancing", "cluster", "karpenter", "replacing", "settings", "shape")
PAGES = ("README.md", *(f"docs/{name}.md" for name in _DOCS))
NOT_HERE = {
    "PXSCHED_TOKEN='audit@pve!ro=...' pxsched list --host pve1.example.org":
        "needs a cluster's API; tests/optin/test_https.py has one",
    "apt-get build-dep ./": "fetches a compiler; tools/release runs it in bare roots",
    "dpkg-buildpackage -us -uc -b": "made the package that is installed here",
    "apt remove proxmox-scheduler": "is not in Debian; tests/install/test_package.py has one like it",
    "apt remove proxmox-cpu-affinity": "is not in Debian",
    "systemctl stop pxsched.timer": "needs systemd; the timer is not running here to begin with",
    "pxsched sandbox demo": "tests/sandbox/test_demo.py runs it, ./install.sh --demo here",
}  # fmt: skip
ENDLESS = {"pxsched top", "pxsched top --period 0.5", "pxsched watch --period 1", "pxsched prove 100",
           "pxsched prove 100 --measure 'cat /run/queries-per-second' --keep"}  # fmt: skip
SHELL = ["qm create 100 --cores 2", "pxsched enable 100", "qm start 100", "pxsched status"]
"""What README says to type in the stand-in node's shell."""
ON_A_NODE = {
    "./install.sh", "./install.sh --uninstall", "pxsched node install --storage local",
    "pxsched node uninstall --dry-run", "apt install ../pxsched_*.deb", "apt install ./pxsched_*.deb",
    "apt remove pxsched", "./install.sh --dry-run", "./install.sh --uninstall --remove-stub",
}  # fmt: skip
OF_A_CHECKOUT = {"./install.sh --demo", "./install.sh --shell", "./install.sh --clean"}
REFUSED = {
    "pxsched shape 100 --undo": "nothing is remembered",
    "pxsched cluster fit --vcpus 16 --memory 65536 --class dedicated": "fits on none",
    "pxsched cluster fit 100 --nodes pve1,pve2": "there is no node 'pve1'",
    "pxsched cluster plan --drain pve2": "there is no node 'pve2'",
    "pxsched prove 100 --between stock home dedicated": "pins it already",
    "pxsched prove 100 --between stock home dedicated --for 30m": "pins it already",
}
"""What may be refused with exit code 1 where the stand-in node is as it is, and what is said then."""
BEFORE = {
    "pxsched disable 100": "pxsched enable 100",
    "pxsched shape 100": "pxsched enable 100",
    "pxsched enable --tag db --now": "qm set 100 --tags db",
    "pxsched status 100": "pxsched enable 100 --now",
    "pxsched status 100 --json": "pxsched enable 100 --now",
    "pxsched hook 100 post-start": "pxsched enable 100",
    "pxsched prove 100": "pxsched enable 100 --now",
    "pxsched prove 100 --between stock home dedicated": "pxsched enable 100 --now",
    "pxsched prove 100 --between stock home dedicated --for 30m": "pxsched enable 100 --now",
    "pxsched prove 100 --measure 'cat /run/queries-per-second' --keep": "pxsched enable 100 --now",
}


def in_page(name: str) -> Iterator[str]:
    """The commands of its blocks, without what is said of them, and those among its sentences."""
    text = (CHECKOUT / name).read_text()
    for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE):
        yield re.split(r" {2,}", line)[0]
    for span in re.findall(r"`([^`]+)`", text):
        if len(words := span.split()) > 1 and span not in MENTIONED:
            yield " ".join(words)


MENTIONED = {
    "qm destroy", "pxsched enable --balloon", "pxsched plan", "pxsched shape", "pxsched cluster fit",
    "pxsched report --prometheus", "pxsched report --prometheus FILE", "pxsched enable", "pxsched plan VMID",
    "pxsched enable VMID", "pxsched shape VMID", "qm set VMID --delete hookscript",
}  # fmt: skip
"""Commands that sentences speak of, and no one can type."""


def in_help(parser: argparse.ArgumentParser) -> Iterator[str]:
    for line in (parser.epilog or "").splitlines():
        yield re.split(r" {2,}", line.strip())[0]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from in_help(sub)


def printed() -> list[str]:
    found = dict.fromkeys([*(line for page in PAGES for line in in_page(page)), *in_help(cli.parser())])
    return [line for line in found if COMMAND.fullmatch(line) and not line.startswith("--")]


def test_every_exception_is_printed_somewhere():
    """So none outlives its command."""
    named = {*NOT_HERE, *ENDLESS, *SHELL, *ON_A_NODE, *OF_A_CHECKOUT, *REFUSED, *BEFORE}
    assert named - set(printed()) == set()
    assert len(printed()) > 60


DRIVER = r"""
cd "$1"
number=0
while IFS='|' read -r how line <&3; do
    number=$((number + 1))
    (
        [ "$how" != checkout ] || { unset PXSCHED_ROOT; cd /checkout; }
        case $line in
            *" shell" | *--shell) exec timeout 60 sh -c "$line" <"$1/typed" ;;
            apt*) echo y | timeout 60 sh -c "$line" ;;
            *) case $how in
                endless) exec timeout 4 script -qec "$line" /dev/null </dev/null ;;
                *) exec timeout 150 sh -c "$line" </dev/null ;;
            esac ;;
        esac
    ) >"$1/out.$number" 2>&1
    echo $? >"$1/code.$number"
done 3<lines
"""
"""Each line says how it is run: plain, endless, or in the checkout, below the machine's own root."""


class World:
    """A directory in which commands are run: home, captured machines, requests, a stand-in node."""

    def __init__(self, base: Path, inside: str, machines: Path) -> None:
        self.base, self.inside = base, inside
        for name in ("captured", "CAPTURE"):
            shutil.copytree(machines / "pepc-adl0/root", base / name, symlinks=True)
        (base / "home").mkdir()
        (base / "requests.jsonl").write_text('{"op": "start", "vmid": 1, "vcpus": 2, "memory_mib": 512}\n')
        (base / "typed").write_text("".join(f"{line}\n" for line in SHELL))
        (base / "driver").write_text(DRIVER)
        kernel = Path.home() / ".cache/pxsched/kernel"
        if kernel.exists():
            shutil.copytree(kernel, base / "home/.cache/pxsched/kernel")

    def environment(self, path: str) -> dict[str, str]:
        return {
            "HOME": f"{self.inside}/home", "PXSCHED_ROOT": f"{self.inside}/node", "SHELL": "/bin/sh",
            "PATH": f"{path}:{self.inside}/node/usr/bin", "TERM": "xterm", "COLUMNS": "100", "LINES": "40",
        }  # fmt: skip

    def write(self, rest: list[str], first: tuple[str, ...] = (), last: tuple[str, ...] = ()) -> None:
        """What is run: first and last below the machine's own root, the rest with a stand-in node."""
        sandbox = f"pxsched sandbox --dir {self.inside}/node"
        qm = f"env -u PXSCHED_ROOT {sandbox} qm"
        found = [f"checkout|{line}" for line in first]
        found += [f"plain|{qm} create 100 --cores 1 --affinity 0 --tags 'db;pilot' --memory 64"]
        found += [f"plain|{qm} create 101 --memory 64", f"plain|{qm} start 100", f"plain|{qm} start 101"]
        for line in rest:
            found += [f"plain|{BEFORE[line]}"] if line in BEFORE else []
            found.append(f"{'endless' if line in ENDLESS else 'plain'}|{line}")
        found += [f"plain|{sandbox} destroy", *(f"checkout|{line}" for line in last)]
        (self.base / "lines").write_text("".join(f"{line}\n" for line in found))

    def judge(self) -> list[str]:
        """What went wrong."""
        wrong = []
        for number, text in enumerate((self.base / "lines").read_text().splitlines(), 1):
            how, _, line = text.partition("|")
            said = (self.base / f"out.{number}").read_text("utf-8", "replace")
            code = int((self.base / f"code.{number}").read_text())
            needs = "VM 100: shared, running" if line.endswith("shell") else ""
            good = code == (124 if how == "endless" else 0) and needs in said
            good |= code == 1 and line in REFUSED and REFUSED[line] in said
            if not good or "Traceback" in said or "Unable to locate" in said:
                wrong.append(f"$ {line}\n{said[-1500:]}exit code {code}")
        return wrong


@pytest.fixture
def place() -> Iterator[Path]:
    """Short, as unix sockets below it must be."""
    with tempfile.TemporaryDirectory(prefix="printed-") as name:
        yield Path(name)


REST = [
    line
    for line in printed()
    if line not in {*NOT_HERE, SHELL[0], SHELL[2], *ON_A_NODE, *OF_A_CHECKOUT}
]


def wheel(place: Path) -> str:
    """pxsched from a wheel, in an environment that borrows the tests' packages; returns its bin directory."""
    shutil.copytree(CHECKOUT, place / "source", symlinks=True, ignore=_what_git_does_not_know)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    made = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(place), str(place / "source")], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no wheel can be built: {made.stderr.strip()[-300:]}")
    shutil.rmtree(place / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    [site] = (place / "venv/lib").glob("python3*/site-packages")
    [borrowed] = [path for path in sys.path if path.startswith(sys.prefix) and path.endswith("-packages")]
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    [built] = place.glob("pxsched-*.whl")
    python = str(place / "venv/bin/python")
    install = ["--python", python, "install", "--no-deps", "--no-index", str(built)]
    subprocess.run([*pip, *install], check=True)
    return str(place / "venv/bin")


def checkout(place: Path) -> str:
    (place / "bin").mkdir()
    command = place / "bin/pxsched"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={CHECKOUT} exec {sys.executable} -m pxsched "$@"\n')
    command.chmod(0o755)
    return str(place / "bin")


@pytest.mark.slow
@pytest.mark.measures
@pytest.mark.parametrize("way", [checkout, wheel])
def test_on_this_machine(way, place, machines):
    path = f"{way(place)}:{os.environ['PATH']}"
    (place / "world").mkdir()
    world = World(place / "world", str(place / "world"), machines)
    world.write(REST)
    driver = ["sh", str(world.base / "driver"), str(world.base)]
    subprocess.run(driver, env=world.environment(path), check=True, timeout=500)
    assert not (wrong := world.judge()), "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.measures
def test_from_install_sh(machine, machines):
    """The demo and the shell of a checkout, an installation, and its end."""
    # The demo takes a minute: on one of the two.
    demo = ("./install.sh --demo",) if machine.suite == "trixie" else ()
    first = (*demo, "./install.sh --shell", "./install.sh --dry-run", "./install.sh")
    last = (
        "pxsched node uninstall --dry-run", "./install.sh --uninstall",
        "./install.sh --uninstall --remove-stub", "./install.sh --clean",
    )  # fmt: skip
    in_root(machine, machines, (*first, "pxsched node install --storage local"), last)
    assert not machine.path("opt/pxsched").exists()


@pytest.mark.slow
@pytest.mark.measures
def test_from_the_package(machine, machines, package):
    shutil.copy(package, machine.path(package.name))
    last = ("pxsched node uninstall --dry-run", "apt remove pxsched")
    in_root(machine, machines, ("apt install ../pxsched_*.deb",), last)
    assert not machine.path("usr/bin/pxsched").exists()


def in_root(machine, machines, first: tuple[str, ...], last: tuple[str, ...]) -> None:
    machine.path("world").mkdir()
    world = World(machine.path("world"), "/world", machines)
    world.write(REST, first, last)
    terminals = "mount -t devpts -o ptmxmode=0666 devpts /dev/pts; ln -sf pts/ptmx /dev/ptmx"
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    machine.run("sh", "-c", f"{terminals}; sh /world/driver /world", **world.environment(path))
    assert not (wrong := world.judge()), "\n\n".join(wrong)
