"""Writes settings of one VM into the node's file, and leaves everything else in it as it is.

The file is the admin's, with his comments and order, so it is changed as a text: keys of `[vm.VMID]` are
replaced or added. What it then says is read back before it takes the old one's place, and must differ in
nothing else.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pxsched.errors import UserError
from pxsched.replacing import replace_file
from pxsched.root import Root
from pxsched.settings.files import NODE_FILE
from pxsched.settings.policy import key_of

Values = Mapping[str, object]


def keep(root: Root, vmid: int, values: Values, comment: Sequence[str]) -> None:
    """values: by field of `Policy`, none of them left out. Raises UserError where the file cannot be read as
    TOML, or changed without changing more, and leaves it.
    """
    before = root.read_bytes(NODE_FILE) or b""
    try:
        text = before.decode()
        document = tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"/{NODE_FILE} cannot be read, so nothing is written: {error}") from error
    after = changed(text, vmid, values, comment)
    try:
        found = tomllib.loads(after)
    except ValueError:
        found = {}
    if found != _wanted(document, vmid, values):
        raise UserError(f"/{NODE_FILE} has [vm.{vmid}] in a form that cannot be changed here",
                        hint=", ".join(lines(values)))  # fmt: skip
    _write(root, after)


def _wanted(document: Mapping[str, Any], vmid: int, values: Values) -> dict[str, Any]:
    vms = dict(document.get("vm", {}))
    vms[str(vmid)] = {**vms.get(str(vmid), {}), **{key_of(name): value for name, value in values.items()}}
    return {**document, "vm": vms}


def lines(values: Values) -> list[str]:
    """The settings as the file has them."""
    return [f"{key_of(name)} = {_toml(value)}" for name, value in values.items()]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def changed(text: str, vmid: int, values: Values, comment: Sequence[str]) -> str:
    """The file's text with these values in it, and the comment above them."""
    new = [*(f"# {line}" for line in comment), *lines(values)]
    rows = text.splitlines()
    begin = next((n for n, row in enumerate(rows) if _is_head(row, vmid)), None)
    if begin is None:
        gap = [""] if rows and rows[-1].strip() else []
        return "\n".join([*rows, *gap, f"[vm.{vmid}]", *new, ""])
    end = next((n for n in range(begin + 1, len(rows)) if rows[n].lstrip().startswith("[")), len(rows))
    keys = "|".join(re.escape(key_of(name)) for name in values)
    old = re.compile(rf"\s*({keys})\s*=", re.ASCII)
    own = [row for row in rows[begin + 1 : end] if not (keys and old.match(row))]
    return "\n".join([*rows[: begin + 1], *new, *own, *rows[end:], ""])


def _is_head(row: str, vmid: int) -> bool:
    return re.fullmatch(rf'\s*\[\s*vm\s*\.\s*("{vmid}"|{vmid})\s*\]\s*(#.*)?', row, re.ASCII) is not None


def _write(root: Root, text: str) -> None:
    path = root.path(NODE_FILE)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        mode = os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o644
        replace_file(path, text.encode(), mode=mode, durable=True)
    except OSError as error:
        raise UserError(f"cannot write /{NODE_FILE}: {error.strerror}") from error
