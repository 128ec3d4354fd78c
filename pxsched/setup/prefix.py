"""The directory that the program is put into: whether it may be, and what in it is not ours.

Needs nothing but Python itself.
"""

import os
import re

from pxsched.errors import UserError
from pxsched.root import Root
from pxsched.setup import manifest as manifests
from pxsched.setup.manifest import Manifest
from pxsched.setup.removal import CACHE
from pxsched.value import replace

# A directory of this name may have other things in it, as long as none is where ours go: an uninstallation
# leaves what is not ours.
_NAME = "pxsched"
DEFAULT = f"opt/{_NAME}"
# What an installation consisted of before there was a list of it, and what one that was cut short leaves.
_EARLIER = re.compile(
    r"pyvenv\.cfg|\.gitignore|bin/(python[\d.]*|[Aa]ctivate[\w.]*|pip[\d.]*|pxsched(\.(pxsched-)?new)?)|lib64"
    r"|share/(pxsched/hooks/.*|doc/pxsched/\w+\.md|man/man1/pxsched\.1)"
    r"|share/(bash-completion/completions/pxsched|zsh/site-functions/_pxsched)"
    r"|lib/python3\.\d+/site-packages/\.?pxsched(-new|-old)?/(.*\.pyc?|sandbox/files/init)"
)


class NotOurs(UserError):
    """A directory in which nothing of ours may be put, nor taken from."""


def normal(root: Root, prefix: str) -> str:
    """The directory below the root, however it was spelled. Raises NotOurs for the root itself."""
    real = os.path.realpath(root.path(prefix.lstrip("/")))
    relative = os.path.relpath(real, os.path.realpath(root.base))
    if relative == "." or relative.startswith(".."):
        raise NotOurs(f"{prefix} is no directory of its own", hint="such as /opt/pxsched")
    return relative


def is_earlier(root: Root, prefix: str) -> bool:
    """Whether a version that kept no list of its files was installed there, by the command it made."""
    text = root.read(f"{prefix}/bin/pxsched") or ""
    return text.startswith("#!") and "/bin/python -I\nfrom pxsched.cli import entry" in text


def begin(root: Root, prefix: str) -> Manifest:
    """The list with which an installation there begins; `foreign` is what is there and not ours.

    Raises NotOurs for a directory that has other things in it, UserError where the program is elsewhere.
    """
    known = manifests.load(root) or Manifest()
    if known.prefix and known.prefix != prefix:
        raise UserError(
            f"pxsched is installed in /{known.prefix}",
            hint=f"--prefix /{known.prefix}, or uninstall it first",
        )
    if known.foreign is not None:
        return known  # an installation that was cut short goes on
    there, directories = set(manifests.scan(root, prefix)), set(manifests.directories(root, prefix))
    if known.prefix:
        ours = {path for path in there if path in known.files or _is_compiled(path, known)}
        ours |= {path for path in directories if path in known.directories or path.endswith(f"/{CACHE}")}
    elif is_earlier(root, prefix):
        ours = _of_earlier(root, prefix, there) | directories
    elif root.list(prefix) and (os.path.basename(prefix) != _NAME or _of_earlier(root, prefix, there)):
        raise NotOurs(f"/{prefix} is not empty and not of pxsched", hint="give --prefix another directory")
    else:
        ours = set()
    return replace(known, prefix=prefix, foreign=tuple(sorted((there | directories) - ours)))


def _of_earlier(root: Root, prefix: str, there: set[str]) -> set[str]:
    """What earlier versions put there: by its name, or because pip wrote down that it did."""
    ours = {path for path in there if _EARLIER.fullmatch(os.path.relpath(path, prefix))}
    for record in (path for path in there if path.endswith(".dist-info/RECORD")):
        site = os.path.dirname(os.path.dirname(record))
        lines = (root.read(record) or "").splitlines()
        ours |= {os.path.normpath(f"{site}/{line.rsplit(',', 2)[0]}") for line in lines} & there
    return ours


def _is_compiled(path: str, known: Manifest) -> bool:
    """Whether Python made it of a file of ours."""
    directory, name = os.path.split(path)
    source = f"{os.path.dirname(directory)}/{name.split('.')[0]}.py"
    return os.path.basename(directory) == CACHE and source in known.files


def installed(root: Root, prefix: str | None) -> str:
    """The prefix that is to be uninstalled, empty when nothing is installed. prefix: what the admin said.

    Raises NotOurs for a directory with other things in it, UserError for an installation without a list.
    """
    known = manifests.load(root)
    have = known.prefix if known else ""
    named = (have or DEFAULT) if prefix is None else normal(root, prefix)
    if named == have:
        return have
    if is_earlier(root, named):
        raise UserError(
            f"/{named} is of an earlier version, which kept no list of what it installed",
            hint="install this version over it, which makes one, then uninstall",
        )
    if prefix is not None and next(manifests.scan(root, named), None) is not None:
        hint = f"pxsched is in /{have}" if have else "pxsched is not installed"
        raise NotOurs(f"/{named} bears no mark of pxsched: nothing in it is touched", hint=hint)
    return ""
