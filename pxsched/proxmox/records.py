"""What is remembered of single VMs: one small file each below /etc/pve, so that it moves with its VM and no
node overwrites what another one writes.

Rules, from pmxcfs(8): each file is replicated by itself, renamed atomically, and every change is refused
while there is no quorum; there are neither modes nor links. Only root can write here. No test has a real
pmxcfs: that these rules hold is taken from its manual.
"""

import os
import re
from typing import NamedTuple

from pxsched.errors import UserError
from pxsched.root import Root

_NAME = re.compile(r"([1-9]\d{2,8})\.json", re.ASCII)
# Another node may remove the empty directory between our making it and our writing into it.
_TRIES = 20


class Records(NamedTuple):
    """Those of one kind. directory: below the root."""

    directory: str

    def path_of(self, vmid: int) -> str:
        return f"{self.directory}/{int(vmid)}.json"

    def vmids(self, root: Root) -> list[int]:
        """The VMIDs that there are files of, whichever VMs have these numbers now."""
        return sorted(int(match[1]) for name in root.list(self.directory) if (match := _NAME.fullmatch(name)))

    def read(self, root: Root, vmid: int) -> bytes | None:
        """None where nothing is remembered under that number."""
        return root.read_bytes(self.path_of(vmid))

    def write(self, root: Root, vmid: int, data: bytes) -> None:
        """Remembers, in the place of what was remembered under that number. Raises UserError."""
        from pxsched.host import mounts  # the hook only reads

        mounts.check_cluster(root)
        path = root.path(self.path_of(vmid))
        new = f"{path}.tmp.{os.uname().nodename}.{os.getpid()}"
        for left in range(_TRIES, 0, -1):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(new, "wb") as file:
                    file.write(data)
                os.replace(new, path)
                return
            # The directory goes before the file comes, or while `makedirs` looks whether it is one.
            except (FileNotFoundError, FileExistsError) as error:
                if left == 1:
                    raise self._refusal(vmid, error) from error
            except OSError as error:
                raise self._refusal(vmid, error) from error

    def drop(self, root: Root, vmid: int) -> None:
        """Forgets what is remembered under that number. Raises UserError."""
        path = root.path(self.path_of(vmid))
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refusal(vmid, error) from error
        for directory in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
            try:
                os.rmdir(directory)
            except OSError:
                return  # it has other files, or gets one this moment

    def drop_unfinished(self, root: Root, before_s: float) -> None:
        """Removes what a writer that was killed left before this Unix time."""
        for name in root.list(self.directory):
            path = root.path(f"{self.directory}/{name}")
            try:
                if ".json.tmp." in name and os.stat(path).st_mtime < before_s:
                    os.unlink(path)
            except OSError:
                continue  # the next time, or another node did

    def _refusal(self, vmid: int, error: OSError) -> UserError:
        return UserError(f"/{self.path_of(vmid)}: {error.strerror}", hint="has the cluster quorum?")
