"""Whatever happens to a sandbox's owner or to its processes, no guest outlives it."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.sandbox import node
from pxsched.sandbox import sandbox as sandboxes
from pxsched.sandbox.sandbox import Sandbox, listening

from .conftest import RECORDING_HOOK, Recorder, create, eventually

pytestmark = pytest.mark.measures

PACKAGE = Path(__file__).parents[2]

OWNER = """\
import sys
from pxsched.sandbox.sandbox import Sandbox

sandbox = Sandbox(*sys.argv[1:])
sandbox.qm("create", 100, memory=32)
if sys.argv[1:]:
    sandbox.qm("set", 100, hookscript="local:snippets/recorder")
sandbox.qm("start", 100)
print(sandbox.pid(100), sandbox.directory, flush=True)
sys.stdin.read()
"""


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def killed_owner(*arguments: str) -> tuple[int, Path]:
    """The guest and the directory of a sandbox whose owner was killed."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip
    with owner:
        pid, directory = owner.stdout.readline().split()
        owner.kill()
    return int(pid), Path(directory)


def test_closing_ends_guests_with_their_hooks_and_deletes_the_directory(tmp_path):
    with Sandbox() as sandbox:
        sandbox.snippet("recorder", RECORDING_HOOK.replace("{root}/calls", f"{tmp_path}/calls"))
        create(sandbox)
        sandbox.qm("start", 100)
        pid = sandbox.pid(100)
    assert gone(pid)
    assert not sandbox.directory.exists()
    assert Recorder(tmp_path).phases == ["pre-start", "post-start", "pre-stop", "post-stop"]


def test_a_killed_owner_ends_its_guests_with_their_hooks(tmp_path):
    home = node.create(tmp_path / "node")
    hook = home.path("var/lib/vz/snippets/recorder")
    hook.write_text(RECORDING_HOOK)
    hook.chmod(0o755)
    pid, _ = killed_owner(home.base)
    assert eventually(lambda: gone(pid))
    assert eventually(lambda: Recorder(Path(home.base)).phases[-2:] == ["pre-stop", "post-stop"])
    assert eventually(lambda: not listening(home))


def test_a_killed_owner_leaves_no_temporary_directory():
    pid, directory = killed_owner()
    assert eventually(lambda: gone(pid))
    assert eventually(lambda: not directory.exists())


def test_a_killed_supervisor_takes_its_guests_along():
    with Sandbox() as sandbox:
        sandbox.qm("create", 100, memory=32)
        sandbox.qm("start", 100)
        pid = sandbox.pid(100)
        (supervisor,) = children(sandbox.supervisor_pid)
        assert pid in children(supervisor)
        os.kill(supervisor, signal.SIGKILL)
        assert eventually(lambda: gone(pid))


def test_a_killed_guardian_takes_the_guests_along():
    with Sandbox() as sandbox:
        sandbox.qm("create", 100, memory=32)
        sandbox.qm("start", 100)
        pid = sandbox.pid(100)
        os.kill(sandbox.supervisor_pid, signal.SIGKILL)
        assert eventually(lambda: gone(pid))


def test_a_hook_that_hangs_does_not_keep_a_sandbox_alive():
    with Sandbox(patience_s=1) as sandbox:
        sandbox.snippet("hangs", '#!/bin/sh\n[ "$2" != pre-stop ] || exec sleep 1000\n')
        sandbox.qm("create", 100, memory=32, hookscript="local:snippets/hangs")
        sandbox.qm("start", 100)
        pid = sandbox.pid(100)
    assert gone(pid)


def test_no_dead_qemu_stays_behind_as_a_zombie(sandbox):
    create(sandbox)
    sandbox.qm("start", 100)
    pid = sandbox.pid(100)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: gone(pid))


def test_a_directory_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(UserError, match="neither empty nor a sandbox"):
        Sandbox(tmp_path)
    with pytest.raises(UserError, match="not a sandbox"):
        node.remove(tmp_path)
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize("name", ["long" * 30, "a,b"])
def test_neither_a_long_directory_nor_a_comma_is_an_obstacle(tmp_path, name):
    """A unix socket's path has 107 bytes, and a comma ends an option of QEMU."""
    with Sandbox(tmp_path / name) as sandbox:
        assert len(sandbox.root) < 60
        sandbox.qm("create", 100, memory=32)
        sandbox.qm("start", 100)
        pid_file = tmp_path / name / "run/qemu-server/100.pid"
        assert pid_file.read_text().strip() == str(sandbox.pid(100))
    node.remove(tmp_path / name)
    assert not Path(sandbox.root).parent.exists()


def qm(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pxsched", "sandbox", "--dir", str(directory), *words]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_on_the_command_line_guests_live_until_the_sandbox_is_destroyed(tmp_path):
    directory = tmp_path / "node"
    assert qm(directory, "qm", "create", "100", "--memory", "32").returncode == 0
    assert qm(directory, "qm", "start", "100").returncode == 0
    listed = qm(directory, "qm", "list").stdout.splitlines()[1].split()
    assert listed[:4] == ["100", "VM", "100", "running"]
    pid = int(listed[-1])
    refused = qm(directory, "qm", "start", "100")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "already running" in refused.stderr
    assert qm(directory, "destroy").returncode == 0
    assert gone(pid)
    assert not directory.exists()


def test_a_deleted_directory_ends_its_guests(tmp_path):
    directory = tmp_path / "node"
    qm(directory, "qm", "create", "100", "--memory", "32")
    qm(directory, "qm", "start", "100")
    pid = int((directory / "run/qemu-server/100.pid").read_text())
    node.remove(directory)
    assert eventually(lambda: gone(pid), within_s=20)


def test_a_supervisor_whose_time_is_up_just_now_is_followed_by_another(tmp_path):
    home = node.create(tmp_path / "node")
    with socket.socket(socket.AF_UNIX) as last:
        last.bind(str(home.control))
        last.listen()

        def leave():
            last.accept()[0].close()  # somebody asked whether it was there
            with last.accept()[0] as task:
                task.recv(1)  # what is not read resets the connection

        leaving = threading.Thread(target=leave)
        leaving.start()
        done = sandboxes.do(home, ["list"])
        leaving.join()
    assert done.code == 0 and "VMID" in done.output
    sandboxes.destroy(tmp_path / "node")
