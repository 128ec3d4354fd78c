"""Writing `VMID.conf`: one option set or taken away, everything else as it was.

Rules: PVE::QemuServer::write_vm_config. Notes come first, then the options by name, then [PENDING], then
whatever other sections there are; the file is replaced in one step.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

from pxsched.guest import config
from pxsched.value import NOTHING, Value, replace

_HEADING = re.compile(r"^(?=\[.+\]\s*$)", re.MULTILINE)


class Stored(Value):
    """A configuration file taken apart. rest: snapshots and other sections, as they stand in the file."""

    options: Mapping[str, str] = NOTHING
    pending: Mapping[str, str] = NOTHING
    description: str = ""
    rest: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        text = path.read_text("utf-8", "replace")
        parsed = config.parse(text, name=path.name)
        return cls(parsed.options, parsed.pending, parsed.description, _other_sections(text))

    def write(self, path: Path) -> None:
        new = path.with_name(f"{path.name}.tmp.{os.getpid()}")
        new.write_text(self.text())
        new.replace(path)

    def text(self) -> str:
        notes = [f"#{quote(line, safe=_PLAIN)}" for line in self.description.split("\n") if self.description]
        lines = notes + _lines(self.options)
        if self.pending:
            lines += ["", "[PENDING]", *_lines(self.pending)]
        return "\n".join(lines) + "\n" + (f"\n{self.rest}" if self.rest else "")

    def with_options(self, changes: Mapping[str, str | None]) -> Self:
        """In force at once; None deletes. What was pending for these is forgotten."""
        options = _changed(self.options, changes)
        return replace(self, options=options, pending=_changed(self.pending, dict.fromkeys(changes)))

    def with_pending(self, changes: Mapping[str, str | None]) -> Self:
        """In force at the next start; None means deleted then."""
        values = {key: value for key, value in changes.items() if value is not None}
        deleted = self.deletions - set(values) | (set(changes) - set(values)) & set(self.options)
        pending = _changed(dict(self.pending), dict.fromkeys(changes)) | values
        pending.pop("delete", None)
        unchanged = [key for key, value in pending.items() if self.options.get(key) == value]
        pending = _changed(pending, dict.fromkeys(unchanged))
        return replace(self, pending=pending | ({"delete": ",".join(sorted(deleted))} if deleted else {}))

    def merged(self) -> Self:
        """What a start makes of it: nothing pending any more."""
        values = {key: value for key, value in self.pending.items() if key != "delete"}
        options = _changed(self.options, dict.fromkeys(self.deletions)) | values
        return replace(self, options=options, pending={})

    @property
    def deletions(self) -> set[str]:
        return {key.strip(" !") for key in self.pending.get("delete", "").split(",") if key}


_PLAIN = " !\"$&'()*+,-./;<=>?@[\\]^_`{|}~#"


def _lines(options: Mapping[str, str]) -> list[str]:
    return [f"{key}: {options[key]}" for key in sorted(options)]


def _changed(options: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    result = dict(options)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def _other_sections(text: str) -> str:
    sections = _HEADING.split(text)[1:]
    return "".join(section for section in sections if not section.upper().startswith("[PENDING]"))
