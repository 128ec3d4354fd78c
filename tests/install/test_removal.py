"""Only what is listed and bears its mark is removed, whatever else there is; cut short, it goes on."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pxsched.errors import UserError
from pxsched.root import Root
from pxsched.setup import manifest as manifests
from pxsched.setup import prefix as prefixes
from pxsched.setup import removal
from pxsched.setup.manifest import MANIFEST, Manifest
from pxsched.setup.prefix import NotOurs

NAMES = st.sampled_from(["a", "b.py", "c", "lib", "bin", "__pycache__", "b.cpython-311.pyc", "pxsched"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
# What becomes of a path: ours, changed meanwhile, removed meanwhile, never ours.
FATES = st.sampled_from(["ours", "changed", "gone", "foreign", "a link of ours", "a link to elsewhere"])
LINKED = {"a link of ours", "a link to elsewhere"}


def build(base: Path, tree: dict[str, str]) -> Manifest:
    """A tree with its list, as somebody's work afterwards left both."""
    root, known = Root(str(base)), Manifest(prefix="opt/pxsched")
    (base / "elsewhere").mkdir(parents=True)
    (base / "elsewhere/a").write_text("precious")
    for name, fate in tree.items():
        path = base / "opt/pxsched" / name
        if os.path.realpath(path.parent) != str(path.parent):
            continue  # we do not install behind a link
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if fate == "a link to elsewhere":
                path.symlink_to(base / "elsewhere")
            elif fate == "a link of ours":
                path.symlink_to("nowhere")
            else:
                path.write_text(name)
        except OSError:
            continue  # a file lies where a directory should
        relative = f"opt/pxsched/{name}"
        if fate in ("ours", "changed", "gone", "a link of ours"):
            known = known.with_file(relative, manifests.mark(root, relative))
        if fate == "changed":
            path.write_text("changed")
        elif fate == "gone":
            path.unlink()
    directories = {os.path.relpath(here, base) for here, _, _ in os.walk(base / "opt/pxsched")}
    return known.with_directories(directories)


def contents(base: Path) -> dict[str, str]:
    found = {}
    for path in base.rglob("*"):
        what = os.readlink(path) if path.is_symlink() else "dir" if path.is_dir() else path.read_text()
        found[os.path.relpath(path, base)] = what
    return found


def is_bytecode_of_ours(path: str, known: Manifest, before: dict[str, str]) -> bool:
    directory, name = os.path.split(path)
    source = f"{os.path.dirname(directory)}/{name.split('.')[0]}.py"
    return name.endswith(".pyc") and directory.endswith("__pycache__") and before.get(source) in (
        os.path.relpath(source, "opt/pxsched"),
    ) and source in known.files  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(PATHS, FATES, max_size=12))
def test_only_what_is_ours_and_unchanged_goes(tmp_path_factory, tree):
    base = tmp_path_factory.mktemp("tree")
    known = build(base, tree)
    root, before = Root(str(base)), contents(base)
    found = removal.plan(root, known, known.is_program)
    assert contents(base) == before, "a plan changes nothing"
    removal.carry_out(root, found)
    after = contents(base)
    assert before.keys() - after.keys() == {*found.files, *found.directories}, "just what was shown"
    for path, what in before.items():
        ours = path in known.files and what in (os.path.relpath(path, "opt/pxsched"), "nowhere")
        if what == "dir":
            assert path in after or not any(other.startswith(f"{path}/") for other in after)
        elif ours or is_bytecode_of_ours(path, known, before):
            assert path not in after, path
        else:
            assert after[path] == what, path
    for path in (*found.changed, *found.foreign):
        assert path in after
    assert after["elsewhere/a"] == "precious"


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(PATHS, FATES, max_size=8))
def test_somebody_who_turns_a_directory_into_a_link_loses_nothing_behind_it(tmp_path_factory, tree):
    base = tmp_path_factory.mktemp("tree")
    known = build(base, tree)
    root = Root(str(base))
    (base / "opt/pxsched").mkdir(parents=True, exist_ok=True)
    (base / "opt/pxsched").rename(base / "moved")
    (base / "opt/pxsched").symlink_to(base / "moved")
    before = contents(base)
    found = removal.plan(root, known, known.is_program)
    removal.carry_out(root, found)
    assert contents(base) == before


SPELLINGS = ["/usr", "/usr/", "//usr", "usr/.", "/opt/../usr", "/opt/link", "/usr/local/..", "/boot/.."]


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_a_prefix_counts_by_where_it_is_and_not_by_how_it_is_spelled(tmp_path, spelled):
    for name in ("usr/local", "boot", "opt"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "opt/link").symlink_to(tmp_path / "usr")
    (tmp_path / "usr/data").write_text("precious")
    root = Root(str(tmp_path))
    if spelled == "/boot/..":
        with pytest.raises(NotOurs, match="of its own"):
            prefixes.normal(root, spelled)
        return
    assert prefixes.normal(root, spelled) == "usr"
    with pytest.raises(NotOurs, match="no mark of pxsched"):
        prefixes.installed(root, spelled)
    with pytest.raises(NotOurs, match="not empty"):
        prefixes.begin(root, "usr")
    manifests.save(root, Manifest({"opt/pxsched/a": ("x",)}, prefix="opt/pxsched"))
    with pytest.raises(NotOurs, match="is in /opt/pxsched"):
        prefixes.installed(root, spelled)


@pytest.mark.parametrize("path", ["/etc/passwd", "../etc/passwd", "a/../../b", "", "a//b", "./a", "a/"])
def test_a_list_names_nothing_outside_its_root(tmp_path, path):
    (tmp_path / "var/lib/pxsched").mkdir(parents=True)
    import json

    document = {"files": {path: ["x"]}, "directories": [], "prefix": ""}
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(UserError, match="damaged"):
        manifests.load(Root(str(tmp_path)))


DAMAGED = ["", "{", "[]", "null", '{"files": 3}', '{"files": {"a": "b"}}', "[" * 100_000]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:20])
def test_a_damaged_list_removes_nothing(tmp_path, text):
    (tmp_path / "var/lib/pxsched").mkdir(parents=True)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match="damaged"):
        manifests.load(Root(str(tmp_path)))


def test_a_list_is_read_as_it_was_written(tmp_path):
    root = Root(str(tmp_path))
    known = Manifest({"a/b": ("x", "y")}, ("a",), "opt/pxsched", ("opt/pxsched/c",))
    manifests.save(root, known)
    assert manifests.load(root) == known


# Cut short at every single change of the file system.

CHANGES = ("unlink", "rmdir", "replace", "rename", "mkdir")


def killed_at(number: int, work, changes: tuple[str, ...] = CHANGES) -> bool:
    """Does the work in a process that is killed before its number-th change; whether it was."""
    pid = os.fork()
    if pid == 0:
        left = number

        def counted(change):
            def count(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **kwargs)

            return count

        for name in changes:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        except BaseException:  # noqa: BLE001 - of the child
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


TREE = {
    "bin/pxsched": "ours", "lib/a": "ours", "lib/b.py": "ours", "l": "a link of ours", "x": "gone",
    "lib/__pycache__/b.cpython-311.pyc": "foreign", "lib/deep/c": "foreign", "share/c": "changed",
}  # fmt: skip


def test_killed_at_any_change_the_next_run_finishes(tmp_path):
    def take_away(root: Root) -> None:
        known = manifests.load(root)
        if known is not None:
            removal.carry_out(root, removal.plan(root, known, known.is_program))
            removal.forget(root, known, known.is_program)

    def prepared(name: str) -> Root:
        known = build(tmp_path / name, TREE)
        root = Root(str(tmp_path / name))
        manifests.save(root, known)
        return root

    whole = prepared("whole")
    take_away(whole)
    end = contents(Path(whole.base))
    assert MANIFEST not in end
    number = 0
    while True:
        root = prepared(f"killed-{number}")
        killed = killed_at(number, lambda root=root: take_away(root))
        precious = contents(Path(root.base))
        assert precious["opt/pxsched/lib/deep/c"] == "lib/deep/c"
        assert precious["opt/pxsched/share/c"] == "changed"
        take_away(root)
        again = contents(Path(root.base))
        again.pop("var/lib/pxsched", None)  # ours by its name, and empty
        end.pop("var/lib/pxsched", None)
        assert again == end, number
        if not killed:
            break
        number += 1
    assert number > 8
