"""The list of what an installation has put on this machine: each file with its mark, each directory it made.

Only what is on the list, and still bears its mark, is ever removed. A file is listed before it is written, so
that an installation that is cut short can be taken away, too. Needs nothing but Python itself.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping

from pxsched import stored
from pxsched.errors import UserError
from pxsched.replacing import replace_file
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value, plain, replace

STATE_DIR = "var/lib/pxsched"
MANIFEST = f"{STATE_DIR}/manifest.json"

_MOST = 1 << 17


class Manifest(Value):
    """Paths are below the root. files: the marks that a file of ours may bear, more than one while it is
    being replaced. directories: those we made. prefix: where the program is. foreign: what was in the prefix
    before and is not ours; None while the program is not being written.
    """

    files: Mapping[str, tuple[str, ...]] = NOTHING
    directories: tuple[str, ...] = ()
    prefix: str = ""
    foreign: tuple[str, ...] | None = None

    def with_file(self, path: str, mark: str) -> "Manifest":
        """May bear this mark from now on, too."""
        marks = dict.fromkeys((*self.files.get(path, ()), mark))
        return replace(self, files={**self.files, path: tuple(marks)})

    def with_directories(self, paths: Iterable[str]) -> "Manifest":
        return replace(self, directories=tuple(sorted({*self.directories, *paths})))

    def without(self, paths: Iterable[str]) -> "Manifest":
        """Without these files and directories."""
        gone = frozenset(paths)
        files = {path: marks for path, marks in self.files.items() if path not in gone}
        return replace(self, files=files, directories=tuple(d for d in self.directories if d not in gone))

    def is_program(self, path: str) -> bool:
        """Whether it belongs to the program, or holds it: that goes last, as it removes the others."""
        around = any(f"{one}/".startswith(f"{path}/") for one in (*LINKS, self.prefix))
        return bool(self.prefix) and (around or path.startswith(f"{self.prefix}/"))

    def is_ours(self, root: Root, path: str) -> bool:
        """Whether a file is there, where we put it, as we wrote it."""
        return is_in_place(root, os.path.dirname(path)) and mark(root, path) in self.files.get(path, ())


# The links by which people and shells find the command and its manual, and where in the prefix they point.
COMMAND = "usr/local/bin/pxsched"
LINKS = {
    COMMAND: "bin/pxsched",
    "usr/local/share/man/man1/pxsched.1": "share/man/man1/pxsched.1",
    "usr/local/share/bash-completion/completions/pxsched": "share/bash-completion/completions/pxsched",
    "usr/local/share/zsh/site-functions/_pxsched": "share/zsh/site-functions/_pxsched",
}


def is_in_place(root: Root, directory: str) -> bool:
    """Whether a directory is where it is said to be: what lies behind a link below the root is not ours."""
    there = os.path.normpath(os.path.join(os.path.realpath(root.base), directory))
    return os.path.realpath(root.path(directory)) == there


def mark(root: Root, path: str) -> str:
    """What a file is known by; empty when there is none, or it is neither file nor link."""
    real = root.path(path)
    try:
        if os.path.islink(real):
            return f"link:{os.readlink(real)}"
        if not os.path.isfile(real):
            return ""
        with open(real, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def mark_of(data: bytes) -> str:
    """The mark of a file with this content."""
    return hashlib.sha256(data).hexdigest()


def load(root: Root) -> Manifest | None:
    """None where there is none. Raises UserError for one that cannot be read."""
    try:
        with open(root.path(MANIFEST), "rb") as file:
            return _parse(file.read(stored.MOST_BYTES + 1))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"/{MANIFEST} cannot be read: {error.strerror}") from error
    except Damaged as error:
        raise UserError(f"/{MANIFEST} is damaged: {error}", hint="delete it and install again") from error


def _parse(data: bytes) -> Manifest:
    document = stored.table(stored.parse(data))
    files = stored.table(document.get("files"), _MOST)
    foreign = document.get("foreign")
    return Manifest(
        {_path(path): _texts(marks) for path, marks in files.items()},
        tuple(map(_path, _texts(document.get("directories")))),
        _path(prefix) if (prefix := stored.text(document.get("prefix"), 4096)) else "",
        None if foreign is None else tuple(map(_path, _texts(foreign))),
    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(stored.text(text, 4096) for text in stored.listed(value, _MOST))


def _path(text: str) -> str:
    if not text or text.startswith("/") or os.path.normpath(text) != text or text.split("/")[0] == "..":
        raise Damaged(f"{stored.shown(text)} is no path below the root")
    return text


def save(root: Root, manifest: Manifest) -> None:
    """Replaces the list as a whole, on the disk before anything it names is written. Raises UserError."""
    import json

    path = root.path(MANIFEST)
    text = json.dumps({"schema": 1, **plain(manifest)}, indent=1) + "\n"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        replace_file(path, text.encode(), durable=True)
    except OSError as error:
        raise UserError(f"/{MANIFEST} cannot be written: {error.strerror}") from error


def scan(root: Root, directory: str) -> Iterator[str]:
    """The files and links in a directory, at any depth; links are not followed."""
    for here, names, files in os.walk(root.path(directory)):
        links = [name for name in names if os.path.islink(os.path.join(here, name))]
        for name in (*files, *links):
            yield os.path.relpath(os.path.join(here, name), root.base)


def directories(root: Root, directory: str) -> Iterator[str]:
    """A directory, if there is one, and those in it, at any depth."""
    for here, _names, _files in os.walk(root.path(directory)):
        yield os.path.relpath(here, root.base)


def missing_directories(root: Root, path: str) -> list[str]:
    """The directories that would have to be made for a file."""
    found = []
    directory = os.path.dirname(path)
    while directory and not os.path.isdir(root.path(directory)):
        found.append(directory)
        directory = os.path.dirname(directory)
    return found
