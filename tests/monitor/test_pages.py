"""The pages of docs/monitoring speak of the metrics that there are, and the dashboard is one."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from pxsched.monitor.families import Facts, render

MONITORING = Path(__file__).parents[2] / "docs/monitoring"
KNOWN = set(re.findall(r"^# TYPE (pxsched_\w+) ", render(Facts()), re.MULTILINE))


def named(file: str) -> set[str]:
    return set(re.findall(r"\bpxsched_[a-z_]+\b", (MONITORING / file).read_text()))


def test_the_page_names_every_metric():
    assert named("README.md") == KNOWN


@pytest.mark.parametrize("file", ["alerts.yml", "dashboard.json"])
def test_alerts_and_dashboard_name_only_metrics_that_there_are(file):
    assert named(file) and named(file) <= KNOWN


def test_the_dashboard_is_what_its_maker_makes():
    spec = importlib.util.spec_from_file_location("make_dashboard", MONITORING / "make_dashboard.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert json.loads((MONITORING / "dashboard.json").read_text()) == maker.dashboard()


def test_the_dashboards_panels_do_not_overlap():
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries") and panel["title"] and panel["targets"]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
