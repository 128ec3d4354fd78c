"""The Ansible role: ansible-lint is content; it installs and opts in on a node, and takes all away."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import CHECKOUT, _what_git_does_not_know

pytestmark = pytest.mark.slow

ROLES = CHECKOUT / "contrib/ansible"
# Stands for ssh: what Ansible wants to be run on the node is run in the root.
SSH = r"""#!/bin/sh
for last; do :; done
enter='mount -t proc proc /proc; mount -t sysfs -o ro sysfs /sys; cd /root; sh -c "$1"; exit $?'
exec unshare --mount --pid --fork --kill-child chroot "$NODE" /bin/sh -c "$enter" sh "$last"
"""


@pytest.mark.skipif(not shutil.which("ansible-lint"), reason="needs ansible-lint")
def test_ansible_lint_has_nothing_to_say():
    done = subprocess.run(
        ["ansible-lint", "--offline", "--nocolor"], cwd=ROLES, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


class Controller:
    """Plays the role for one node."""

    def __init__(self, machine, work: Path, **given: object) -> None:
        self.machine, self.work, self.given = machine, work, given
        (work / "ssh").write_text(SSH)
        (work / "ssh").chmod(0o755)

    def play(self, **more: object) -> dict[str, int]:
        """What came of it on the node: how many tasks were ok, changed, failed and so on."""
        environment = {
            **os.environ, "NODE": str(self.machine.base), "ANSIBLE_ROLES_PATH": str(ROLES / "roles"),
            "ANSIBLE_SSH_EXECUTABLE": str(self.work / "ssh"), "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
            "ANSIBLE_SSH_ARGS": "", "ANSIBLE_HOST_KEY_CHECKING": "false", "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self.work / "home"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }  # fmt: skip
        words = {"ansible_python_interpreter": "/usr/bin/python3", "ansible_user": "root"}
        play = ["ansible-playbook", "-i", "pve1,", str(ROLES / "site.yml")]
        done = subprocess.run(
            [*play, "-e", json.dumps({**words, **self.given, **more})],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        [recap] = re.findall(r"^pve1 +: (.*)", done.stdout, re.MULTILINE)
        return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap)}


def archive(work: Path) -> Path:
    """The checkout as `git archive` packs it."""
    ignore = _what_git_does_not_know
    shutil.copytree(CHECKOUT, work / "source/pxsched", symlinks=True, ignore=ignore)
    return Path(shutil.make_archive(str(work / "pxsched"), "gztar", work / "source", "pxsched"))


@pytest.fixture(params=["package", "install.sh"])
def controller(request, machine, tmp_path):
    if not shutil.which("ansible-playbook"):
        pytest.skip("needs ansible-core")
    work = tmp_path / "controller"
    work.mkdir()
    if request.param == "package":
        return Controller(machine, work, pxsched_deb=str(request.getfixturevalue("package")))
    return Controller(machine, work, pxsched_archive=str(archive(work)))


@pytest.mark.parametrize("machine", ["bookworm"], indirect=True)
def test_it_installs_and_opts_in_once_and_takes_all_of_it_away(controller):
    node = controller.machine
    tagged, other = node.vm(100, "tags: db\n"), node.vm(101)
    wishes = {"pxsched_enable_tags": ["db", "nobody"], "pxsched_settings": "[node]\nmoves = 1\n"}
    assert controller.play(**wishes)["changed"] > 2
    assert "hookscript: local:snippets/pxsched" in tagged.read_text()
    assert "hookscript" not in other.read_text()
    assert node.path("etc/pxsched/pxsched.toml").read_text() == "[node]\nmoves = 1\n"
    assert "all keys and values are understood" in node.run("pxsched", "doctor", check=False).stdout
    assert controller.play(**wishes)["changed"] == 0
    assert controller.play(pxsched_state="absent")["changed"] == 1
    assert "hookscript" not in tagged.read_text()
    assert not node.path("usr/bin/pxsched").exists() and not node.path("opt/pxsched").exists()
    assert controller.play(pxsched_state="absent")["changed"] == 0
