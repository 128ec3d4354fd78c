"""`VMID.conf`: its lines and sections.

Rules: Proxmox qemu-server, PVE::QemuServer::parse_vm_config. Nothing here raises for what a file says: broken
lines become warnings with file and line.
"""

import re
from collections.abc import Mapping

from pxsched.guest import options
from pxsched.value import NOTHING, Value

_SECTION = re.compile(r"\[([^\]]*)\]\s*")
_SNAPSHOT = r"(?ai)[a-z][a-z0-9_-]+"
# Five digits are more than any option has; greedy to the last character that is no space, as trying shorter
# values first takes quadratic time on a tenant's line of a megabyte of spaces.
_OPTION = re.compile(r"([a-z][a-z_-]*\d{0,5}):\s*(\S(?:.*\S)?|(?<=\s))\s*", re.ASCII)


class Config(Value):
    """One configuration file. options: the values in force; pending: those of the next start."""

    options: Mapping[str, str] = NOTHING
    pending: Mapping[str, str] = NOTHING
    cloudinit: Mapping[str, str] = NOTHING
    snapshots: Mapping[str, Mapping[str, str]] = NOTHING
    description: str = ""
    warnings: tuple[str, ...] = ()


def parse(text: str, *, name: str = "config") -> Config:
    """Reads a configuration. name: what warnings call the file."""
    parser = _Parser(name)
    for number, line in enumerate(text.split("\n"), 1):
        parser.line(number, line)
    return parser.result()


class _Parser:
    """The state while reading: where the current section's options and notes go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.warnings: list[str] = []
        self.sections: dict[str, dict[str, str]] = {"": {}}
        self.notes: dict[str, list[str]] = {"": []}
        self.section: str | None = ""

    def line(self, number: int, line: str) -> None:
        if not line.strip():
            return
        if heading := _SECTION.fullmatch(line):
            self.heading(number, heading[1])
        elif self.section is None:
            return
        elif line.startswith("#"):
            self.notes[self.section].append(decode_text(line[1:].rstrip("\r")))
        else:
            self.option(number, line)

    def heading(self, number: int, title: str) -> None:
        lower = title.lower()
        if lower == "pending" or lower.startswith("special:"):
            self.section = lower
        elif re.fullmatch(_SNAPSHOT, title):
            self.section = f"snapshot:{title}"
        else:
            self.warn(number, f"unknown section [{title[:40]}]")
            self.section = None
            return
        # A section that comes twice: Proxmox keeps the last one.
        self.sections[self.section] = {}
        self.notes[self.section] = []

    def option(self, number: int, line: str) -> None:
        match = _OPTION.fullmatch(line)
        if match is None or self.section is None:
            self.warn(number, f"cannot read {line[:60]!r}")
            return
        key, value = match[1], match[2]
        if key == "description":
            self.notes[self.section].append(decode_text(value))
        elif key == "delete" and self.section != "pending":
            self.warn(number, "`delete` outside of [PENDING]")
        elif problem := options.invalid(key, value):
            self.warn(number, f"{key}: {problem}")
        else:
            self.sections[self.section][key] = value

    def warn(self, number: int, what: str) -> None:
        self.warnings.append(f"{self.name}:{number}: {what}")

    def result(self) -> Config:
        snapshots = {}
        for section, said in self.sections.items():
            if section.startswith("snapshot:"):
                notes = "\n".join(self.notes[section])
                described = {"description": notes} if notes else {}
                snapshots[section.removeprefix("snapshot:")] = said | described
        return Config(
            options=self.sections[""],
            pending=self.sections.get("pending", {}),
            cloudinit=self.sections.get("special:cloudinit", {}),
            snapshots=snapshots,
            description="\n".join(self.notes[""]),
            warnings=tuple(self.warnings),
        )


def decode_text(text: str) -> str:
    """Percent-decoded UTF-8, as Proxmox writes notes (PVE::Tools::decode_text)."""
    raw = re.sub(
        rb"%([0-9A-Fa-f]{2})", lambda match: bytes((int(match[1], 16),)), text.encode("utf-8", "replace")
    )
    return raw.decode("utf-8", "replace")
