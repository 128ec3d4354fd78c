"""How the product hangs together: imports point downwards only, and what is imported is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PRODUCT = CHECKOUT / "pxsched"

# From the ground floor up; what stands on one line knows nothing of its neighbours.
FLOORS = (
    "errors output patience replacing value version",
    "stored child material",
    "root",
    "lock state",
    "host",
    "settings guest",
    "placement balance shape proof",
    "knobs",
    "ledger",
    "plugins",
    "node",
    "arguments report monitor",
    "proxmox",
    "sandbox",
    "chain karpenter shaping cluster",
    "hook tick",
    "optin commands",
    "doctor setup",
    "cli",
    "__main__",
)
FLOOR_OF = {room: number for number, line in enumerate(FLOORS) for room in line.split()}


def modules() -> dict[str, ast.Module]:
    """Every module of the product by its dotted name."""
    found = {}
    for path in sorted(PRODUCT.rglob("*.py")):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports, anywhere in it, and the modules it names for a later import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield from (
                full if (full := f"{node.module}.{name.name}") in MODULES else node.module
                for name in node.names
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            if name in MODULES and name != "pxsched":
                yield name


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_floor():
    assert {room(module) for module in MODULES if module != "pxsched"} == set(FLOOR_OF)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "pxsched"])
def test_imports_point_downwards(module):
    for other in imported(MODULES[module]):
        if not other.startswith("pxsched.") or room(other) == room(module):
            continue
        assert FLOOR_OF[room(other)] < FLOOR_OF[room(module)], f"{module} imports {other}"


PURE = ("placement", "balance", "shape", "proof", "plugins")
SYSTEM = {"os", "socket", "subprocess", "time", "fcntl", "shutil", "pathlib", "psutil", "pyroute2"}


@pytest.mark.parametrize(
    "module", [module for module in MODULES if module.split(".")[1:2] and room(module) in PURE]
)
def test_what_is_pure_does_not_touch_the_system(module):
    assert not {name.partition(".")[0] for name in imported(MODULES[module])} & SYSTEM


@pytest.mark.parametrize("module", sorted(name for name in MODULES if not name.startswith("pxsched.sandbox")))
def test_children_are_started_in_one_place(module):
    """Umask and locale of a child are Proxmox's, which is seen to there. (A sandbox is a Proxmox itself.)"""
    assert module == "pxsched.child" or "subprocess" not in set(imported(MODULES[module]))


@pytest.mark.parametrize("module", sorted(name for name in MODULES if not name.startswith("pxsched.sandbox")))
def test_json_is_read_in_one_place(module):
    """With a bound on everything. (A sandbox reads what its own processes wrote.)"""
    called = {ast.unparse(node.func) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)}
    assert module == "pxsched.stored" or not called & {"json.loads", "json.load"}


# What other programs say, passed on by a process whose output `qm` collects and filters.
PASSED_ON = {"pxsched.sandbox.supervisor"}
SPEAKING = {"print", "sys.stdout.write", "sys.stderr.write", "syslog.syslog"}


@pytest.mark.parametrize("module", [name for name in MODULES if name not in {"pxsched.output", *PASSED_ON}])
def test_text_leaves_by_one_door(module):
    called = {ast.unparse(node.func) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)}
    assert not called & SPEAKING, "pxsched.output says it"


# Libraries. Those of the standard library need no word; the optional ones say what is missing when they are.

REQUIRED = {"proxmoxer", "psutil", "pyroute2", "filelock"}
OPTIONAL = {"requests": "proxmoxer's HTTPS", "rich": "`pxsched top`", "prometheus_client": "metrics"}
DEBIAN = {"proxmoxer": "python3-proxmoxer", "psutil": "python3-psutil", "pyroute2": "python3-pyroute2",
          "filelock": "python3-filelock"}  # fmt: skip


def third_party() -> set[str]:
    names = {name.partition(".")[0] for tree in MODULES.values() for name in imported(tree)}
    hook = ast.parse((CHECKOUT / "hooks/pxsched").read_text())
    names |= {name.partition(".")[0] for name in imported(hook)}
    return names - set(sys.stdlib_module_names) - {"pxsched"}


def distribution(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert found
    return found[0]


def test_every_import_is_declared_and_everything_declared_is_imported():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert {distribution(text) for text in project["dependencies"]} == REQUIRED
    optional = {
        distribution(text)
        for name, texts in project["optional-dependencies"].items()
        if name != "test"
        for text in texts
    }
    assert optional == set(OPTIONAL)
    assert third_party() == REQUIRED | (set(OPTIONAL) & third_party())
    assert third_party() - REQUIRED <= optional
