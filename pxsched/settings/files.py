"""What the admin wants, read from all its sources and checked against the declarations in `policy`. A file
that cannot be read counts as it was when it could (`kept`).

Sources, later ones win, key by key: built-in defaults; the few upper-case names (`default_file`);
/etc/pve/pxsched.toml (whole cluster); /etc/pxsched/pxsched.toml (this node).
All of them can be written by root only. A VM's tags may choose a profile that allows it, and nothing else.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pxsched.errors import nearest
from pxsched.host.name import name_of
from pxsched.root import Root
from pxsched.settings import default_file, kept
from pxsched.settings.default_file import DEFAULT_FILE, UpperCase
from pxsched.settings.policy import NodeSettings, Policy, Shaping, key_of
from pxsched.value import NOTHING, Value, replace

CLUSTER_FILE = "etc/pve/pxsched.toml"
NODE_FILE = "etc/pxsched/pxsched.toml"


class Profile(Value):
    """A named overlay; tag: whether a VM may choose it by the tag `pxsched-NAME`."""

    overlay: Mapping[str, Any]
    tag: bool = False


class Settings(Value):
    """Everything the admin said. warnings: what of it is not understood, one line each. notes: what of it the
    older daemon of that name would take otherwise. stale: which files cannot be read, so that what they said
    last is in force.
    """

    node: NodeSettings = NodeSettings()
    defaults: Policy = Policy()
    profiles: Mapping[str, Profile] = NOTHING
    vms: Mapping[int, Mapping[str, Any]] = NOTHING
    vm_profiles: Mapping[int, str] = NOTHING
    features: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    def policy(self, vmid: int, tags: Iterable[str] = ()) -> Policy:
        """The policy of one VM; tags come from tenants and count only where a profile offers itself."""
        policy = self.defaults
        profile = self.profile(vmid, tags)
        if profile:
            policy = replace(policy, **self.profiles[profile].overlay)
        own = self.vms.get(vmid)
        return replace(policy, **own) if own else policy

    @property
    def shapes(self) -> bool:
        """Whether any VM can have the policy `shape = "apply"`."""
        overlays = [*(profile.overlay for profile in self.profiles.values()), *self.vms.values()]
        return Shaping.APPLY in (self.defaults.shape, *(overlay.get("shape") for overlay in overlays))

    def profile(self, vmid: int, tags: Iterable[str] = ()) -> str | None:
        """The name of the VM's profile: the admin's choice, else the first tag that may choose one."""
        chosen = self.vm_profiles.get(vmid)
        if chosen in self.profiles:
            return chosen
        offered = (tag.removeprefix("pxsched-") for tag in tags if tag.startswith("pxsched-"))
        return next((name for name in offered if name in self.profiles and self.profiles[name].tag), None)


def load(root: Root, environ: Mapping[str, str] = os.environ, *, keep: bool = False) -> Settings:
    """All settings below `root`. Never raises: what is wrong is named in `warnings` and left out.

    keep: what could be read is kept for the day it cannot.
    """
    files = _Files(root, keep)
    documents = {f"/{file}": files.toml(file) for file in (CLUSTER_FILE, NODE_FILE)}
    upper = default_file.read(files.text(DEFAULT_FILE), environ)
    files.close()
    found = _settings(documents, lambda: name_of(root), upper)
    return replace(found, stale=tuple(files.stale))


def of_node(name: str, shared: Mapping[str, object], local: Mapping[str, object]) -> Settings:
    """What another node goes by. shared, local: the content of the cluster's file, and of its own."""
    return _settings({f"/{CLUSTER_FILE}": shared, f"{name}:/{NODE_FILE}": local}, lambda: name, UpperCase())


def content(root: Root, file: str) -> Mapping[str, object]:
    """What CLUSTER_FILE or NODE_FILE says, as it counts."""
    return _Files(root, False).toml(file)


def _settings(
    documents: Mapping[str, Mapping[str, object]], name: Callable[[], str], upper: UpperCase
) -> Settings:
    """documents: by file, later ones win. name: of the node whose settings these are."""
    warnings = [*upper.warnings]
    tables: dict[str, dict[str, object]] = {
        "node": {**upper.node},
        "defaults": {**upper.defaults},
        "profile": {},
        "vm": {},
    }
    for file, document in documents.items():
        _overlay(tables, document, file, warnings)
        _overlay(tables, _of_one_node(document, name), f"{file} [node.NAME]", warnings)
    nodes = (key for key, value in tables["node"].items() if isinstance(value, dict))
    for one in [key for key in nodes if key not in NodeSettings.declared]:
        del tables["node"][one]
    profiles = {}
    for title, table in tables["profile"].items():
        body = _table(table, f"[profile.{title}]", warnings)
        tag = body.pop("tag", False)
        if not isinstance(tag, bool):
            warnings.append(f"[profile.{title}] tag: neither true nor false; no tag chooses it")
            tag = False
        profiles[title] = Profile(_build(Policy, body, f"[profile.{title}]", warnings), tag)
    vms: dict[int, Mapping[str, Any]] = {}
    vm_profiles: dict[int, str] = {}
    for vmid, table in tables["vm"].items():
        body = _table(table, f"[vm.{vmid}]", warnings)
        if not re.fullmatch(r"[1-9]\d{2,8}", vmid, re.ASCII):
            warnings.append(f"[vm.{vmid}]: {vmid!r} is no VMID")
            continue
        profile = body.pop("profile", None)
        if isinstance(profile, str) and profile in profiles:
            vm_profiles[int(vmid)] = profile
        elif isinstance(profile, str):
            near = nearest(profile, profiles)
            warnings.append(f"[vm.{vmid}] profile: there is no profile {profile!r}{near}")
        elif profile is not None:
            warnings.append(f"[vm.{vmid}] profile: not a profile's name")
        vms[int(vmid)] = _build(Policy, body, f"[vm.{vmid}]", warnings)
    return Settings(
        node=NodeSettings(**_build(NodeSettings, tables["node"], "[node]", warnings)),
        defaults=Policy(**_build(Policy, tables["defaults"], "[defaults]", warnings)),
        profiles=profiles,
        vms=vms,
        vm_profiles=vm_profiles,
        features=upper.features,
        warnings=tuple(warnings),
        notes=upper.notes,
    )


def _of_one_node(document: Mapping[str, object], name: Callable[[], str]) -> dict[str, object]:
    """What a document says of this node alone, as one that says it of all: `[node.NAME]` of the node,
    `[node.NAME.vm.ID]` of a VM while it is there.
    """
    table = document.get("node")
    if not isinstance(table, dict) or not any(isinstance(value, dict) for value in table.values()):
        return {}
    own = table.get(name())
    if not isinstance(own, dict):
        return {}
    apart = {key: value for key, value in own.items() if isinstance(value, dict)}
    return {**apart, "node": {key: value for key, value in own.items() if key not in apart}}


class _Files:
    """The files as they count. stale: what to tell of those that cannot be read."""

    def __init__(self, root: Root, keep: bool) -> None:
        self._root, self._keep = root, keep
        self._before, damage = kept.load(root, set_aside=keep)
        self.stale = [damage] if damage else []
        self._now: kept.Records = {}
        self._now_s = time.time()

    def text(self, file: str) -> str:
        said = self._said(file)
        self._remember(file, said, None)
        return said.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def toml(self, file: str) -> Mapping[str, object]:
        said = self._said(file)
        if not said.text.strip():
            self._remember(file, said, {})
            return {}
        document = said.document
        if document is None:
            parsed = _parsed(said.text)
            if isinstance(parsed, str):
                said = kept.fall_back(file, parsed, self._before.get(file))
                self.stale.append(said.stale)
                parsed = said.document or _parsed(said.text)
            document = {} if isinstance(parsed, str) else parsed
        self._remember(file, said, document)
        return document

    def _said(self, file: str) -> kept.Said:
        before = self._before.get(file)
        look = kept.look(self._root, file, known=before is not None)
        said = kept.judge(file, look, before, self._now_s)
        if said.stale:
            self.stale.append(said.stale)
        return said

    def _remember(self, file: str, said: kept.Said, document: Mapping[str, object] | None) -> None:
        before = self._before.get(file)
        if before is not None and (said.stale or said.text == before.text):
            self._now[file] = before
        elif said.text and not said.stale:
            self._now[file] = kept.record(said.text, document, self._now_s)

    def close(self) -> None:
        if self._keep and self._now != self._before:
            kept.save(self._root, self._now)


def _parsed(text: str) -> Mapping[str, object] | str:
    """The TOML document, or what is wrong with it."""
    import tomllib  # 10 ms that a hook does not pay for a file that is as it was

    try:
        return tomllib.loads(text.encode("utf-8", "surrogateescape").decode())
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or a number of thousands of digits
        return str(error)


def _table(value: object, where: str, warnings: list[str]) -> dict[str, object]:
    if isinstance(value, dict):
        return dict(value)
    warnings.append(f"{where}: not a table of settings")
    return {}


def _build(
    model: type[Policy] | type[NodeSettings], table: Mapping[str, object], where: str, warnings: list[str]
) -> dict[str, Any]:
    """The checked values of one table, by field name."""
    known = {key_of(name): name for name in model.declared}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            warnings.append(f"{where} {key}: unknown setting{nearest(key, known)}")
            continue
        try:
            values[known[key]] = model.declared[known[key]].parse(value)
        except ValueError as error:
            warnings.append(f"{where} {key}: {error}; using the default")
    return values


def _overlay(
    tables: dict[str, dict[str, object]], document: Mapping[str, object], file: str, warnings: list[str]
) -> None:
    """Lays one file over what is there, key by key, two levels deep for profiles and VMs."""
    for name, table in document.items():
        if name not in tables or not isinstance(table, dict):
            warnings.append(f"{file} [{name}]: unknown table{nearest(name, tables)}")
            continue
        for key, value in table.items():
            before = tables[name].get(key)
            if isinstance(value, dict) and isinstance(before, dict):
                value = before | value
            tables[name][key] = value
