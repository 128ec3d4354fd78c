"""Putting the program into a directory of its own, and taking it away: what install.sh does there.

A virtual environment that sees Debian's packages, or has copies of its own; the package, put together beside
the old one and renamed, so that the hook never finds half of it. Needs nothing but Python itself, as it also
runs where what the program needs is not there yet, or not any more.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pxsched import child
from pxsched.errors import UserError
from pxsched.output import say
from pxsched.replacing import NEW, replace_file
from pxsched.root import Root
from pxsched.setup import manifest as manifests
from pxsched.setup import prefix as prefixes
from pxsched.setup import removal
from pxsched.setup.manifest import LINKS, Manifest
from pxsched.value import replace

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
PIP_PATIENCE_S = 1800.0


def put(root: Root, prefix: str, *, private: bool) -> None:
    """Installs or upgrades the program. May be cut short anywhere and done again. private: with copies of the
    packages it needs. Raises UserError, of which NotOurs is one.
    """
    os.umask(child.UMASK)
    known = prefixes.begin(root, prefix)
    foreign = frozenset(known.foreign or ())
    known = known.with_directories(manifests.missing_directories(root, f"{prefix}/bin"))
    for link in LINKS:
        known = known.with_directories(manifests.missing_directories(root, link))
    manifests.save(root, known)
    try:
        _environment(root, prefix, private=private)
        _package(root, prefix, foreign)
        _hooks(root, prefix, known)
        _manual(root, prefix)
        _write(root.path(f"{prefix}/bin/pxsched"), _command(prefix), 0o755)
        linked = [link for link, target in LINKS.items() if _link(root, link, f"/{prefix}/{target}")]
    except OSError as error:
        raise UserError(f"{error.filename or prefix}: {error.strerror}") from error
    ours = [*_ours(root, prefix, foreign), *linked]
    marks = {path: (manifests.mark(root, path),) for path in ours}
    gone = [path for path in known.files if known.is_program(path) and path not in marks]
    known = known.without(gone).with_directories(_directories(root, prefix, foreign))
    manifests.save(root, replace(known, files={**known.files, **marks}, foreign=None))


def remove(root: Root, *, dry_run: bool) -> None:
    """Takes the program away. May be cut short anywhere and done again. Raises UserError."""
    known = manifests.load(root)
    if known is None or not known.prefix:
        return
    found = removal.plan(root, known, known.is_program)
    say(f"{'would ' if dry_run else ''}{removal.describe(found, known.prefix)}", *removal.left(found))
    if not dry_run:
        removal.carry_out(root, found)
        removal.forget(root, known, known.is_program)


def _ours(root: Root, prefix: str, foreign: frozenset[str]) -> Iterator[str]:
    there = manifests.scan(root, prefix)
    return (path for path in there if path not in foreign and not path.endswith(".pyc"))


def _directories(root: Root, prefix: str, foreign: frozenset[str]) -> set[str]:
    """Those that were not there before."""
    return set(manifests.directories(root, prefix)) - foreign


def _environment(root: Root, prefix: str, *, private: bool) -> None:
    place = root.path(prefix)
    if not private and os.access(f"{place}/bin/python", os.X_OK) and os.path.isdir(_site(place)):
        return
    shared = () if private else ("--without-pip", "--system-site-packages")
    _must([PYTHON, "-m", "venv", *shared, place])
    os.makedirs(_site(place), exist_ok=True)
    if private:
        import tomllib

        needs = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
        pip = [f"{place}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _must([*pip, *needs, "requests"])


def _must(argv: Sequence[str]) -> str:
    """What it printed. Raises UserError when it failed."""
    try:
        done = child.run(argv, patience_s=PIP_PATIENCE_S)
    except child.Late as error:
        raise UserError(str(error)) from error
    if done.returncode:
        raise UserError(f"{' '.join(argv[:4])}: {' '.join((done.stderr or done.stdout).split())[-300:]}")
    return done.stdout


def _site(place: str) -> str:
    return f"{place}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def _package(root: Root, prefix: str, foreign: frozenset[str]) -> None:
    now, new, old = (f"{_site(prefix)}/{name}" for name in ("pxsched", ".pxsched-new", ".pxsched-old"))
    _finish(root, now, old, foreign)
    shutil.rmtree(root.path(new), ignore_errors=True)
    _copy(CHECKOUT / "pxsched", root, new)
    path = root.path(new)
    _must([PYTHON, "-m", "compileall", "-q", path, "-s", path, "-p", f"/{now}"])
    if os.path.isdir(root.path(now)):
        os.rename(root.path(now), root.path(old))
    os.rename(path, root.path(now))
    _finish(root, now, old, foreign)


def _finish(root: Root, now: str, old: str, foreign: frozenset[str]) -> None:
    """Completes a replacement. What somebody has put among our files goes on to lie among them; where we have
    a file of that name now, with `.yours` behind it.
    """
    if not os.path.isdir(root.path(old)):
        return
    if not os.path.isdir(root.path(now)):
        os.rename(root.path(old), root.path(now))
        return
    for path in list(manifests.scan(root, old)):
        there = f"{now}/{os.path.relpath(path, old)}"
        if there in foreign:
            to = root.path(there)
            os.makedirs(os.path.dirname(to), exist_ok=True)
            os.rename(root.path(path), f"{to}.yours" if os.path.lexists(to) else to)
    shutil.rmtree(root.path(old))


def _hooks(root: Root, prefix: str, known: Manifest) -> None:
    target = f"{prefix}/share/pxsched/hooks"
    written = _copy(CHECKOUT / "hooks", root, target)
    for path in known.files:
        if path.startswith(f"{target}/") and path not in written and known.is_ours(root, path):
            os.unlink(root.path(path))


def _manual(root: Root, prefix: str) -> None:
    """The manual page and what completes the command in shells, made from the parser; and the pages that the
    Debian package has, too.
    """
    for name, words in (
        ("man/man1/pxsched.1", ("make_manual.py",)),
        ("bash-completion/completions/pxsched", ("make_completions.py", "bash")),
        ("zsh/site-functions/_pxsched", ("make_completions.py", "zsh")),
    ):
        made = _must([PYTHON, "-BI", str(CHECKOUT / "docs" / words[0]), *words[1:]])
        _write(root.path(f"{prefix}/share/{name}"), made.encode(), 0o644)
    for page in (CHECKOUT / "debian/pxsched.docs").read_text().split():
        text = (CHECKOUT / page).read_bytes()
        _write(root.path(f"{prefix}/share/doc/pxsched/{os.path.basename(page)}"), text, 0o644)


def _copy(source: Path, root: Root, target: str) -> set[str]:
    """A directory of the checkout, without what Python compiled; returns the paths that were written."""
    written = set()
    for path in sorted(source.rglob("*")):
        if path.is_file() and removal.CACHE not in path.parts:
            to = f"{target}/{path.relative_to(source)}"
            _write(root.path(to), path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
            written.add(to)
    return written


def _command(prefix: str) -> bytes:
    return f"#!/{prefix}/bin/python -I\nfrom pxsched.cli import entry\n\nentry()\n".encode()


def _write(path: str, data: bytes, mode: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    replace_file(path, data, mode=mode)


def _link(root: Root, link: str, target: str) -> bool:
    """Makes a link; False where something else has its name."""
    path = root.path(link)
    if os.path.lexists(path) and not os.path.islink(path):
        say(f"/{link} is not ours and stays; ours is {target}")
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.islink(path) or os.readlink(path) != target:
        new = f"{path}{NEW}"
        if os.path.lexists(new):
            os.unlink(new)
        os.symlink(target, new)
        os.replace(new, path)
    return True
