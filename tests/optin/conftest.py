"""A node's files, and scripts that write down how they were called."""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxsched.chain import handback
from pxsched.optin import commands
from pxsched.root import Root
from pxsched.sandbox.sandbox import Sandbox

HOOK = Path(__file__).parents[2] / "hooks/pxsched"


class Node:
    """A node called pve1 in a directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(str(base))
        (base / "etc/pve/nodes/pve1/qemu-server").mkdir(parents=True)
        os.symlink("nodes/pve1", base / "etc/pve/local")
        self.log = base / "calls"

    def write(self, relative: str, text: str, mode: int = 0o644) -> Path:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def vm(self, vmid: int, text: str = "", *, node: str = "pve1") -> Path:
        return self.write(f"etc/pve/nodes/{node}/qemu-server/{vmid}.conf", f"cores: 2\n{text}")

    def script(self, relative: str, *, exit_code: int = 0, text: str = "") -> Path:
        """A script that logs its name and arguments."""
        body = text or f'echo "$(basename "$0") $*" >>"{self.log}"\nexit {exit_code}\n'
        return self.write(relative, f"#!/bin/sh\n{body}", 0o755)

    def snippet(self, name: str, **how: object) -> Path:
        return self.script(f"var/lib/vz/snippets/{name}", **how)

    def hook(self, name: str, **how: object) -> Path:
        return self.script(f"etc/pxsched/hooks.d/{name}", **how)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


@pytest.fixture
def pxsched(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`pxsched enable | disable | list` below a root; returns exit code, stdout, stderr."""

    def run(root: Root, *words: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        commands.register(parser.add_subparsers(dest="command", required=True))
        args = parser.parse_args(list(words))
        args.root = root
        code = int(args.run(args))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def home() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(home: Sandbox) -> Iterator[Sandbox]:
    """A stand-in node with our script, and without any VM before and after."""
    home.snippet("pxsched", HOOK)
    yield home
    for vmid in home.node.vmids():
        home.qm("stop", vmid, check=False)
        home.qm("destroy", vmid)
    shutil.rmtree(home.node.path("etc/pve/pxsched"), ignore_errors=True)
    for name in ("etc/pve/ha/resources.cfg", "etc/pxsched/pxsched.toml", handback.FAILED):
        home.node.path(name).unlink(missing_ok=True)
