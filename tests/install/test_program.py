"""The program in a directory of its own: put there, upgraded beside an admin's files, taken away."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pxsched.root import Root
from pxsched.setup import __main__ as place
from pxsched.setup import manifest as manifests
from pxsched.setup import program

from .test_removal import killed_at

PREFIX = "opt/pxsched"

pytestmark = pytest.mark.skipif(not os.path.exists(program.PYTHON), reason=f"there is no {program.PYTHON}")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A root with the program in it, to be copied."""
    base = tmp_path_factory.mktemp("installed") / "root"
    base.mkdir()
    assert place.main(["--root", str(base), "put", "--prefix", f"/{PREFIX}"]) == 0
    return base


@pytest.fixture
def root(installed, tmp_path):
    """A copy of it, as the link's target and pyc files are the same everywhere."""
    shutil.copytree(installed, tmp_path / "root", symlinks=True)
    return Root(str(tmp_path / "root"))


def tell(root, *words):
    return place.main(["--root", root.base, *words])


def everything(root):
    return sorted(manifests.scan(root, "."))


def package(root):
    [found] = Path(root.base, PREFIX).glob("lib/python3*/site-packages/pxsched")
    return found


def test_every_file_is_listed_and_the_program_works(root):
    known = manifests.load(root)
    assert known.foreign is None
    listed = {path for path in known.files if known.is_ours(root, path)}
    there = {path for path in everything(root) if not path.endswith(".pyc")}
    assert there - listed == {manifests.MANIFEST}
    done = subprocess.run(
        [sys.executable, "-c", "import pxsched.cli, sys; sys.exit(pxsched.cli.main(['--version']))"],
        env={"PYTHONPATH": str(package(root).parent)}, capture_output=True, cwd="/",
    )  # fmt: skip
    assert b"Traceback" not in done.stderr


def test_the_manual_the_completions_and_the_pages_come_along(root):
    for link, start in (
        ("man/man1/pxsched.1", '.TH PXSCHED 1 "" "pxsched '),
        ("bash-completion/completions/pxsched", "# bash completion for pxsched"),
        ("zsh/site-functions/_pxsched", "#compdef pxsched\n"),
    ):
        target = os.readlink(root.path(f"usr/local/share/{link}"))
        assert target == f"/{PREFIX}/share/{link}"
        assert (root.read(target.lstrip("/")) or "").startswith(start)
    pages = root.path(f"{PREFIX}/share/doc/pxsched")
    names = (program.CHECKOUT / "debian/pxsched.docs").read_text().split()
    assert set(os.listdir(pages)) == {os.path.basename(name) for name in names}
    assert "## Recipes" in Path(pages, "settings.md").read_text()


def test_taken_away_it_leaves_nothing(root):
    assert tell(root, "remove") == 0
    assert everything(root) == []
    assert not os.path.exists(root.path("opt"))
    assert tell(root, "remove") == 0


def test_taking_it_away_needs_nothing_but_python_itself(root):
    """Half removed, it cannot run any more, and Debian may lack what it needed."""
    command = [sys.executable, "-S", "-m", "pxsched.setup", "--root", root.base, "remove"]
    done = subprocess.run(command, env={"PYTHONPATH": str(program.CHECKOUT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert everything(root) == []


def test_a_second_run_changes_nothing(root):
    def marks():
        return {path: manifests.mark(root, path) for path in everything(root) if not path.endswith(".pyc")}

    before = marks()
    assert tell(root, "put", "--prefix", f"/{PREFIX}//") == 0
    assert marks() == before


def test_an_upgrade_drops_our_old_files_and_keeps_an_admins(root):
    known = manifests.load(root)
    old = os.path.relpath(package(root) / "of_the_last_version.py", root.base)
    Path(root.path(old)).write_text("")
    hook = f"{PREFIX}/share/pxsched/hooks/pxsched-old.timer"
    Path(root.path(hook)).write_text("")
    known = known.with_file(old, manifests.mark(root, old)).with_file(hook, manifests.mark(root, hook))
    manifests.save(root, known)
    mine = [package(root) / "mine.py", package(root) / "notes/mine", Path(root.path(f"{PREFIX}/notes"))]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    patched = package(root) / "errors.py"
    patched.write_text("broken = ")
    assert tell(root, "put") == 0
    assert not os.path.exists(root.path(old))
    assert not os.path.exists(root.path(hook))
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert "UserError" in patched.read_text()
    assert tell(root, "remove") == 0
    assert {os.path.relpath(path, root.base) for path in mine} == set(everything(root))


def test_a_file_of_an_admin_that_we_ship_now_is_kept_beside_ours(root):
    path = package(root) / "errors.py"
    relative = os.path.relpath(path, root.base)
    manifests.save(root, manifests.load(root).without([relative]))  # an earlier version had none
    path.write_text("mine")
    assert tell(root, "put") == 0
    assert "UserError" in path.read_text()
    assert path.with_name("errors.py.yours").read_text() == "mine"


def test_an_earlier_versions_installation_is_taken_over(root):
    os.unlink(root.path(manifests.MANIFEST))
    Path(root.path(f"{PREFIX}/notes")).write_text("mine")
    before = everything(root)
    for words in (["remove"], ["remove", "--dry-run"], ["installed"]):
        assert tell(root, *words) == 1
    assert everything(root) == before
    assert tell(root, "put") == 0
    assert tell(root, "remove") == 0
    assert everything(root) == [f"{PREFIX}/notes"]


def test_a_directory_with_other_things_in_it_is_not_used(root, capsys):
    Path(root.path("srv/data")).mkdir(parents=True)
    Path(root.path("srv/data/a")).write_text("precious")
    os.unlink(root.path(manifests.MANIFEST))
    shutil.rmtree(root.path(PREFIX))
    before = everything(root)
    for words in (["check"], ["put"], ["remove"], ["installed"]):
        for spelled in ("/srv/data", "//srv/data/", "/srv/../srv/data/.", "/srv", "/"):
            assert tell(root, *words, "--prefix", spelled) == 2, (words, spelled)
    assert everything(root) == before
    assert "srv" in capsys.readouterr().err


def test_after_an_admins_files_were_left_it_can_be_put_there_again(root):
    for name in ("notes", "mine/a"):
        path = Path(root.path(f"{PREFIX}/{name}"))
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for _ in range(2):
        assert tell(root, "remove") == 0
        assert everything(root) == [f"{PREFIX}/mine/a", f"{PREFIX}/notes"]
        assert tell(root, "put") == 0


def test_directories_that_were_there_before_stay_though_they_are_empty(root):
    assert tell(root, "remove") == 0
    for name in ("srv", "opt/pxsched/empty"):
        Path(root.path(name)).mkdir(parents=True)
    for prefix in ("/srv", "/opt/pxsched"):
        assert tell(root, "put", "--prefix", prefix) == 0
        assert tell(root, "remove") == 0
    assert os.path.isdir(root.path("srv"))
    assert os.listdir(root.path(PREFIX)) == ["empty"]
    Path(root.path("srv/bin")).mkdir()
    assert tell(root, "put", "--prefix", "/srv") == 2


def test_two_places_at_once_are_refused(root, capsys):
    assert tell(root, "put", "--prefix", "/srv/pxsched") == 1
    assert "is installed in /opt/pxsched" in capsys.readouterr().err
    assert tell(root, "remove", "--prefix", "/srv/pxsched") == 0
    assert os.path.exists(root.path(f"{PREFIX}/bin/pxsched"))


def test_a_command_of_that_name_that_is_not_ours_stays(root):
    link = Path(root.path(manifests.COMMAND))
    link.unlink()
    link.write_text("#!/bin/sh\n")
    assert tell(root, "put") == 0
    assert tell(root, "remove") == 0
    assert link.read_text() == "#!/bin/sh\n"


MOMENTS = [("rename", 0), ("rename", 1), ("rename", 2), ("replace", 99)]


@pytest.mark.parametrize(("change", "number"), MOMENTS)
def test_killed_while_it_is_put_there_the_next_run_finishes(root, change, number):
    """At some changes of the file system; the renames are those that exchange the packages."""
    mine = package(root) / "mine.txt"
    mine.write_text("mine")
    assert killed_at(number, lambda: tell(root, "put"), (change,))
    assert tell(root, "put") == 0
    assert mine.read_text() == "mine"
    assert not [path for path in everything(root) if "/.pxsched-" in path]
    known = manifests.load(root)
    assert known.foreign is None
    assert tell(root, "remove") == 0
    assert everything(root) == [os.path.relpath(mine, root.base)]


def test_killed_while_it_is_taken_away_the_next_run_finishes(root):
    for number in (0, 1, 2, 50, 150, 300, 380, 420):
        killed_at(number, lambda: tell(root, "remove"))
    assert tell(root, "remove") == 0
    assert everything(root) == []


@pytest.mark.parametrize("option", ["--storge=x", "--demoo", "now"])
def test_install_sh_names_an_option_that_it_does_not_have(option):
    words = [str(program.CHECKOUT / "install.sh"), "--dry-run", option]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"install.sh: there is no option {option}\n")


def test_clean_deletes_the_demos_environment_and_names_the_packages_it_brought(tmp_path):
    venv, packages = tmp_path / "cache/venv", tmp_path / "cache/packages"
    venv.mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    packages.write_text("qemu-system-x86\npython3-psutil\n")
    (tmp_path / "cache/kernel").mkdir()

    def clean(*words):
        return subprocess.run(
            [str(program.CHECKOUT / "install.sh"), "--clean", *words],
            env={**os.environ, "PXSCHED_CACHE": str(tmp_path / "cache")},
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert f"would delete {venv}" in clean("--dry-run") and venv.exists()
    assert "apt-get purge --autoremove qemu-system-x86 python3-psutil" in clean()
    assert not (tmp_path / "cache").exists()


APT = """\
#!/bin/sh
here=$(dirname "$0")
case $(basename "$0") in
    apt-cache) [ -e "$here/known" ] || { echo "E: Unable to locate package $2"; exit 100; } ;;
    dpkg-query) exit 1 ;;
    apt-get)
        echo "$*" >>"$here/asked"
        case $* in
            *update) touch "$here/known" ;;
            *install*) [ -e "$here/known" ] || { echo "E: Unable to locate package"; exit 100; }
                echo 'exit 1' >"$here/qemu-system-x86_64"; chmod 755 "$here/qemu-system-x86_64" ;;
        esac ;;
esac
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's install.sh asks apt")
def test_a_bare_machine_is_asked_what_it_knows_before_it_is_told_to_install(tmp_path):
    """apt and QEMU are not there but as scripts; what the shell kept is named, with the packages."""
    tools = ["sh", "basename", "cat", "chmod", "cut", "dirname", "echo", "env", "grep", "id", "mkdir"]
    for name in [*tools, "readlink", "rm", "rmdir", "sed", "tail", "touch", "tr", "xargs"]:
        (tmp_path / name).symlink_to(shutil.which(name))
    for name in ("apt-get", "apt-cache", "dpkg-query"):
        (tmp_path / name).write_text(APT)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python3").symlink_to(program.PYTHON)
    done = subprocess.run(
        [str(program.CHECKOUT / "install.sh"), "--shell"],
        env={"PATH": str(tmp_path), "PXSCHED_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
        input="pxsched --version\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    asked = [line.split()[-1] for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked[:2] == ["update", "qemu-system-x86"]
    assert "Unable to locate" not in done.stdout
    assert "\npxsched " in done.stdout
    assert "Installed: the Debian packages qemu-system-x86" in done.stdout
    assert "./install.sh --clean" in done.stdout


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed")
def test_what_is_installed_has_a_stand_in_node_with_its_own_hookscript(root):
    """With nothing of the checkout: from its directory neither the package nor the hookscript is found."""
    python = root.path(f"{PREFIX}/bin/python")
    typed = "qm create 100 --memory 64\npxsched enable 100\nqm start 100\n"
    typed += "cat $PXSCHED_ROOT/var/lib/vz/snippets/*"
    done = subprocess.run(
        [python, "-I", "-m", "pxsched", "sandbox", "shell"], input=typed, cwd="/", text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "SHELL": "/bin/sh", "HOME": root.base},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert "pxsched: VM 100 is shared" in done.stdout, done.stdout
    assert root.path(f"{PREFIX}/share/pxsched/hooks/pxsched") in done.stdout
