"""The dashboard is what Grafana's own types say of one.

No package of Debian brings a Grafana to load it. Grafana publishes what a dashboard may have in it as types
that are made from its schema: https://github.com/grafana/grafana-foundation-sdk (Apache-2.0).
"""

import copy
import json
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="pip install grafana-foundation-sdk")

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs/monitoring/dashboard.json").read_text())

plugins.register_default_plugins()


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """What Grafana would pass over: it is in the document and not in what Grafana makes of it."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after[key], f"{path}/{key}") if key in after else [f"{path}/{key}"]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, value in enumerate(before):
            yield from lost(value, after[number], f"{path}/{number}")
    elif before != after:
        yield path


def unfit(value: Any, hint: Any, path: str = "") -> Iterator[str]:
    """Where a value, or something in it, is not of the type that its field has."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        tries = [list(unfit(value, one, path)) for one in arguments]
        yield from min(tries, key=len)
    elif origin in (list, dict):
        if not isinstance(value, origin):
            yield path
            return
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unfit(one, arguments[-1], f"{path}/{key}")
    elif origin is typing.Literal:
        yield from [] if value in arguments else [path]
    elif isinstance(hint, type) and issubclass(hint, Enum):
        yield from [] if value in [member.value for member in hint] else [path]
    elif hint is float:
        yield from [] if type(value) in (int, float) else [path]
    elif hint in (int, str, bool, type(None)):
        yield from [] if type(value) is hint else [path]
    elif isinstance(hint, type) and hint is not object:
        yield from [] if isinstance(value, hint) else [path]
        for name, field in typing.get_type_hints(type(value)).items():
            yield from unfit(getattr(value, name), field, f"{path}/{name}")


def faults(document: dict[str, Any]) -> list[str]:
    read = Dashboard.from_json(copy.deepcopy(document))
    return [*unfit(read, Dashboard), *lost(document, json.loads(JSONEncoder().encode(read)))]


def test_grafanas_types_have_a_place_for_everything_in_it():
    assert faults(DASHBOARD) == []
    assert len(DASHBOARD["panels"]) > 10


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda board: board["panels"][0]["gridPos"].update(h="8"), "/panels/0/grid_pos/h"),
        (lambda board: board["panels"][1].update(tilte="x"), "/panels/1/tilte"),
        (lambda board: board["panels"][1]["targets"][0].update(query="up"), "/panels/1/targets/0/query"),
        (lambda board: board["templating"]["list"][1].update(refresh=9), "/templating/list_val/1/refresh"),
    ],
)
def test_what_grafana_would_pass_over_or_refuse_is_found(spoil: Callable[[Any], None], where):
    document = copy.deepcopy(DASHBOARD)
    spoil(document)
    assert where in faults(document)
