"""What installing and removing is made of: small changes that say what they are, are done once, and may be
repeated. A step that is already as it should be is not needed; one that was cut short is done again.
"""

import os
import shutil
from typing import Protocol

from pxsched import child
from pxsched.errors import UserError
from pxsched.replacing import replace_file
from pxsched.root import Root
from pxsched.value import Value

# To stop a unit takes as long as a pass may, which the unit itself bounds at two minutes.
SYSTEMCTL_PATIENCE_S = 180.0


class Step(Protocol):
    @property
    def must(self) -> bool:
        """Whether the run ends when this step cannot be done."""

    def needed(self, root: Root) -> bool: ...

    def describe(self, root: Root) -> str:
        """What it does, as a line that begins with a verb."""

    def execute(self, root: Root) -> None:
        """Raises UserError when it cannot be done."""


class Write(Value):
    """A file of ours, replaced as a whole. keep: an admin's file, written only where there is none."""

    path: str
    data: bytes
    mode: int = 0o644
    keep: bool = False
    must: bool = True

    def needed(self, root: Root) -> bool:
        if self.keep and root.exists(self.path):
            return False
        return root.read_bytes(self.path) != self.data or _mode(root.path(self.path)) != self.mode

    def describe(self, root: Root) -> str:
        return f"{'replace' if root.exists(self.path) else 'write'} /{self.path}"

    def execute(self, root: Root) -> None:
        path = root.path(self.path)
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            replace_file(path, self.data, mode=self.mode)
        except OSError as error:
            raise UserError(f"/{self.path} cannot be written: {error.strerror}") from error


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o7777
    except OSError:
        return 0


class Remove(Value):
    """A file or link of ours: what bears its mark when the plan is made."""

    path: str
    must: bool = True

    def needed(self, root: Root) -> bool:
        return os.path.lexists(root.path(self.path))

    def describe(self, root: Root) -> str:
        return f"remove /{self.path}"

    def execute(self, root: Root) -> None:
        try:
            os.unlink(root.path(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"/{self.path} cannot be removed: {error.strerror}") from error


class RemoveDirectory(Value):
    """A directory that we made and that nothing is left in."""

    path: str
    must: bool = True

    def needed(self, root: Root) -> bool:
        return os.path.isdir(root.path(self.path))

    def describe(self, root: Root) -> str:
        return f"remove /{self.path}/"

    def execute(self, root: Root) -> None:
        try:
            os.rmdir(root.path(self.path))
        except OSError:
            return  # somebody has just put something there


class RemoveState(Value):
    """What passes keep in /run: nobody else's, and gone with the next boot anyway. Looking at it makes it."""

    path: str
    must: bool = True

    def needed(self, root: Root) -> bool:
        return not os.path.islink(root.path(self.path))

    def describe(self, root: Root) -> str:
        return f"remove /{self.path}/"

    def execute(self, root: Root) -> None:
        try:
            shutil.rmtree(root.path(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"/{self.path} cannot be removed: {error.strerror}") from error


class Systemctl(Value):
    """One call of systemctl. offline: also useful in a root that was not booted, as `enable` is."""

    words: tuple[str, ...]
    must: bool = True
    offline: bool = False

    def needed(self, root: Root) -> bool:
        if not shutil.which("systemctl"):
            return False
        return root.base == "/" and (self.offline or os.path.isdir("/run/systemd/system"))

    def describe(self, root: Root) -> str:
        return f"run systemctl {' '.join(self.words)}"

    def execute(self, root: Root) -> None:
        try:
            done = child.run(["systemctl", "--quiet", *self.words], patience_s=SYSTEMCTL_PATIENCE_S)
        except (OSError, child.Late) as error:
            raise UserError(f"systemctl {' '.join(self.words)}: {error}") from error
        if done.returncode:
            raise UserError(f"systemctl {' '.join(self.words)}: {' '.join(done.stderr.split())[:300]}")
