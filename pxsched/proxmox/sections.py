"""Proxmox's configuration files made of sections: `TYPE: ID`, and below it indented lines `key value`.

Rules: PVE::SectionConfig.
"""

from typing import NamedTuple


class Section(NamedTuple):
    kind: str
    name: str
    options: dict[str, str]


def parse(text: str) -> list[Section]:
    """All sections, in order; comments and lines before the first one are left out."""
    found: list[Section] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if not line[:1].isspace():
            kind, _, name = (part.strip() for part in line.partition(":"))
            found.append(Section(kind, name, {}))
        elif found:
            key, _, value = line.strip().partition(" ")
            found[-1].options[key] = value.strip()
    return found
