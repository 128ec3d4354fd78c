"""What bash and zsh complete after `pxsched`, asked of these shells."""

import os
import pty
import re
import shutil
import subprocess
import time

import pytest

from pxsched.cli import AREAS

VMS = "/etc/pve/qemu-server"
# As bash itself asks: the words of the line, and which of them it is about.
ASK = '. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pxsched; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture
def vms(tmp_path):
    """A directory of VMs, to stand in the place of /etc/pve/qemu-server."""
    directory = tmp_path / "qemu-server"
    directory.mkdir()
    for name in ("100.conf", "2001.conf"):
        (directory / name).touch()
    return str(directory)


@pytest.fixture
def bash(made, vms, tmp_path):
    """The words that bash offers for the last one of a line."""
    script = tmp_path / "pxsched.bash"
    text = made("make_completions.py", "bash")
    assert VMS in text
    script.write_text(text.replace(VMS, vms))

    def complete(line: str) -> set[str]:
        command = ["bash", "--norc", "-uc", ASK, str(script), *line.split(" ")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.stderr == ""
        return set(done.stdout.split())

    return complete


def test_bash_offers_all_commands(bash):
    assert bash("pxsched ") == {*AREAS, "-h", "--help", "--root", "--version"}
    assert bash("pxsched st") == {"status"}


def test_bash_offers_the_options_of_the_command_that_was_typed(bash):
    assert bash("pxsched plan --") == {"--help", "--json"}
    assert bash("pxsched node ") == {"install", "uninstall", "-h", "--help"}
    assert bash("pxsched node uninstall --r") == {"--remove-stub"}
    assert "--remove-stub" not in bash("pxsched node install --")


def test_bash_offers_vmids_where_a_vm_is_wanted(bash):
    assert bash("pxsched plan 2") == {"2001"}
    assert bash("pxsched enable 100 2") == {"2001"}
    assert bash("pxsched enable --tag db 1") == {"100"}
    assert not bash("pxsched defrag 2")


def test_bash_offers_files_and_directories_where_they_are_wanted_and_nothing_it_cannot_know(bash, tmp_path):
    (tmp_path / "node.svg").touch()
    (tmp_path / "captured").mkdir()
    assert bash("pxsched report --svg no") == {"node.svg"}
    assert bash("pxsched --root ca") == {"captured"}
    assert bash("pxsched --root n") == set()
    assert bash("pxsched enable --tag ") == set()


def test_bash_knows_the_command_behind_the_root_and_the_root_behind_the_command(bash):
    assert bash("pxsched --root captured plan 2") == {"2001"}
    assert bash("pxsched plan --root captured 2") == {"2001"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_it_can_be_read(made, shell):
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    text = made("make_completions.py", shell)
    done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class Zsh:
    """An interactive zsh in which `pxsched` says what it was called with."""

    def __init__(self, functions: str) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            surroundings = {**os.environ, "TERM": "dumb", "PS1": "", "COLUMNS": "200"}
            os.execvpe("zsh", ["zsh", "-f", "-i"], surroundings)
        self.tell(f"fpath=({functions} $fpath); autoload -Uz compinit; compinit -u -D")
        self.tell("pxsched() { print -r -- \"called<$*>\" }; print -r -- rea''dy")  # its echo is not ready
        self.until("ready")

    def tell(self, line: str) -> None:
        os.write(self.terminal, f"{line}\n".encode())

    def until(self, pattern: str) -> re.Match[str]:
        heard, end = "", time.monotonic() + 60
        while time.monotonic() < end:
            heard += os.read(self.terminal, 65536).decode("utf-8", "replace")
            if found := re.search(pattern, heard):
                return found
        raise AssertionError(f"{pattern!r} is not in {heard!r}")

    def complete(self, line: str) -> str:
        """The line as it is called once the tabulator was pressed at its end."""
        self.tell(f"{line}\t")
        return self.until(r"called<(.*?) ?>")[1]

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.mark.slow
def test_zsh_completes_commands_options_and_vmids(made, vms, tmp_path):
    if not shutil.which("zsh"):
        pytest.skip("needs zsh")
    functions = tmp_path / "functions"
    functions.mkdir()
    (functions / "_pxsched").write_text(made("make_completions.py", "zsh").replace(VMS, vms))
    zsh = Zsh(str(functions))
    try:
        for line, called in (
            ("pxsched topol", "topology"),
            ("pxsched plan --js", "plan --json"),
            ("pxsched plan 2", "plan 2001"),
            ("pxsched enable 100 20", "enable 100 2001"),
            ("pxsched node uninstall --remove", "node uninstall --remove-stub"),
            ("pxsched --root / pl", "--root / plan"),
        ):
            assert zsh.complete(line) == called
    finally:
        zsh.close()
