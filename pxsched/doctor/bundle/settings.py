"""Of the settings: those that were understood, written anew; profiles are numbered instead of named."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pxsched.doctor.bundle import words
from pxsched.settings import default_file
from pxsched.settings import files as settings_module
from pxsched.settings.files import Settings
from pxsched.settings.policy import Settings as Declared
from pxsched.settings.policy import key_of
from pxsched.value import items

# Settings that take any plain word: a governor, a preference.
_WORDS = ("governor", "energy", "governor_free")


def renamed(settings: Settings) -> dict[str, str]:
    """What each profile is called in the bundle."""
    return {name: f"p{number}" for number, name in enumerate(settings.profiles, 1)}


def files(settings: Settings) -> Iterator[tuple[str, str]]:
    """Names below the root, and what is told of them."""
    yield settings_module.NODE_FILE, "".join(f"{line}\n" for line in _tables(settings))
    if settings.features:
        known = [name for name in default_file.FEATURES if name in settings.features]
        yield default_file.DEFAULT_FILE, f"{default_file.FEATURE_FLAGS}={','.join(known)}\n"


def _tables(settings: Settings) -> Iterator[str]:
    names = renamed(settings)
    yield from _table("node", _changed(settings.node))
    yield from _table("defaults", _changed(settings.defaults))
    for name, profile in settings.profiles.items():
        yield from _table(f"profile.{names[name]}", profile.overlay, {"tag": profile.tag})
    for vmid, overlay in settings.vms.items():
        chosen = settings.vm_profiles.get(vmid)
        more = {"profile": names[chosen]} if chosen in names else {}
        yield from _table(f"vm.{vmid}", overlay, more)


def _changed(values: Declared) -> dict[str, object]:
    """What differs from the defaults."""
    return {name: value for name, value in items(values) if value != type(values).declared[name].default}


def _table(name: str, values: Mapping[str, Any], more: Mapping[str, object] | None = None) -> Iterator[str]:
    yield f"[{name}]"
    for key, value in values.items():
        if key not in _WORDS or words.word(value):
            yield f"{key_of(key)} = {json.dumps(value)}"
    for key, value in (more or {}).items():
        yield f"{key} = {json.dumps(value)}"
