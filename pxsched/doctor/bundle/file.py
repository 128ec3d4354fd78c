"""A machine as a file: what the program reads of it, so that a bug report can be replayed with --root.

Written from what is understood, never by striking out: numbers, the kernel's own words and ours. So nothing
of tenants goes in, nor a name that somebody chose: of VMs, nodes, profiles, scripts, devices or hosts.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator

from pxsched.doctor.bundle import machine, settings, state, vms
from pxsched.doctor.finding import Finding, Subject
from pxsched.errors import UserError
from pxsched.root import Root


def write(
    root: Root, path: str, findings: list[Finding], tell: Callable[[str], None] = lambda _line: None
) -> int:
    """Writes the bundle, readable by its owner only; returns the number of files in it. tell: is given each
    one's name. Raises UserError when it cannot be written.
    """
    contents: dict[str, str] = {}
    for name, text in _contents(root, findings):
        tell(f"{len(contents)} files: {name}")
        contents[name] = text
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, 0o600)  # it may have been there
            with tarfile.open(fileobj=stream, mode="w:gz") as tar:
                for name, text in contents.items():
                    _add(tar, name, text.encode())
                for name, target in _links(root):
                    link = tarfile.TarInfo(name)
                    link.type, link.linkname = tarfile.SYMTYPE, target
                    tar.addfile(link)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return len(contents)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """An entry of nobody's, without a time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))


def _contents(root: Root, findings: list[Finding]) -> Iterator[tuple[str, str]]:
    subject = Subject(root)
    yield from machine.files(root)
    yield from vms.files(subject, settings.renamed(subject.settings))
    yield from settings.files(subject.settings)
    yield from state.files(root)
    # What they say may name anything; what they are about and how bad it is does not.
    found = [{"level": finding.level, "area": finding.area} for finding in findings]
    yield "doctor.json", json.dumps({"schema": 1, "findings": found}, indent=1)


def _links(root: Root) -> Iterator[tuple[str, str]]:
    yield "etc/pve/local", f"nodes/{vms.NODE}"
    yield "etc/pve/qemu-server", f"nodes/{vms.NODE}/qemu-server"
    yield from machine.links(root)
