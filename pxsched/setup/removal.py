"""Taking away what a manifest lists: which files and directories go, which stay, and doing it.

What goes is decided once, and is what a dry run shows. A file that no longer bears its mark was changed by
somebody and stays; so does every file that is not listed, with the directories it lies in. Compiled Python
belongs to its source. Needs nothing but Python itself.
"""

import os
from collections.abc import Callable, Iterable

from pxsched.errors import UserError
from pxsched.replacing import NEW
from pxsched.root import Root
from pxsched.setup import manifest as manifests
from pxsched.setup.manifest import Manifest
from pxsched.value import Value

CACHE = "__pycache__"


class Removal(Value):
    """Paths below the root. files, directories: what goes, in this order. changed: of ours, but not as we
    wrote it. foreign: what was never ours, in directories of ours.
    """

    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


def plan(root: Root, manifest: Manifest, concerns: Callable[[str], bool]) -> Removal:
    """What removing those of the manifest's files comes to that `concerns` holds of."""
    listed = [path for path in manifest.files if concerns(path)]
    # The command goes first: while it is there, an uninstallation begins with what only the program can do.
    listed.sort(key=lambda path: (not path.endswith("/bin/pxsched"), path))
    ours = [path for path in listed if manifest.is_ours(root, path)]
    compiled = [path for source in ours for path in _compiled(root, source)]
    # By its source what Python compiled is known to be ours, so the source goes after it.
    files = dict.fromkeys(path for source in ours for path in (*_compiled(root, source), source))
    directories = {directory for directory in manifest.directories if concerns(directory)}
    directories |= {os.path.dirname(path) for path in compiled}
    gone, foreign = _empty(root, directories, files)
    stays = (path for path in listed if path not in files and path not in gone)
    changed = tuple(path for path in stays if os.path.lexists(root.path(path)))
    return Removal(tuple(files), tuple(gone), changed, tuple(sorted(foreign - {*changed})))


def _compiled(root: Root, source: str) -> list[str]:
    """What Python made of a source, whichever Python."""
    if not source.endswith(".py"):
        return []
    directory = f"{os.path.dirname(source)}/{CACHE}"
    stem = os.path.basename(source).removesuffix("py")
    if os.path.islink(root.path(directory)):
        return []
    return [
        f"{directory}/{name}"
        for name in root.list(directory)
        if name.startswith(stem) and name.endswith(".pyc") and name.count(".") <= 3
    ]


def _empty(root: Root, directories: set[str], files: Iterable[str]) -> tuple[list[str], set[str]]:
    """Which of the directories will be empty, inner ones first; and what keeps the others."""
    gone = set(files)
    order, keep = [], set()
    for directory in sorted(directories, key=lambda path: (-path.count("/"), path)):
        if not manifests.is_in_place(root, directory) or not os.path.isdir(root.path(directory)):
            continue
        rest = {f"{directory}/{name}" for name in root.list(directory)} - gone
        if rest:
            keep |= rest - directories
        else:
            gone.add(directory)
            order.append(directory)
    return order, keep


def carry_out(root: Root, removal: Removal) -> None:
    """Removes it. May be cut short anywhere and done again. Raises UserError."""
    for path in removal.files:
        try:
            os.unlink(root.path(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"/{path} cannot be removed: {error.strerror}") from error
    for path in removal.directories:
        try:
            os.rmdir(root.path(path))
        except OSError:
            continue  # somebody has just put something there


def forget(root: Root, manifest: Manifest, concerns: Callable[[str], bool]) -> None:
    """Strikes off the list what was dealt with; with its last entry it goes. Raises UserError."""
    dealt = [path for path in (*manifest.files, *manifest.directories) if concerns(path)]
    rest = manifest.without(dealt)
    if rest.files:
        manifests.save(root, rest)
        return
    try:
        for name in (manifests.MANIFEST, f"{manifests.MANIFEST}{NEW}"):
            if os.path.lexists(root.path(name)):
                os.unlink(root.path(name))
    except OSError as error:
        raise UserError(f"/{manifests.MANIFEST} cannot be removed: {error.strerror}") from error
    try:
        os.rmdir(root.path(manifests.STATE_DIR))
    except OSError:
        return  # not empty: the rest is somebody else's


def left(removal: Removal) -> list[str]:
    """A line for each file that stays."""
    changed = [f"left: /{path} (changed since it was installed)" for path in removal.changed]
    return [*changed, *(f"left: /{path} (not of pxsched)" for path in removal.foreign)]


def describe(removal: Removal, prefix: str) -> str:
    """One line for a whole tree."""
    return (
        f"remove {len(removal.files)} files and {len(removal.directories)} directories of ours in /{prefix}"
    )
