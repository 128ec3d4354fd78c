"""A real Prometheus reads what the passes over real VMs write, and alarms when it should."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pxsched.sandbox.commandline import Accelerator
from pxsched.sandbox.sandbox import Sandbox

CHECKOUT = Path(__file__).parents[2]
MONITORING = CHECKOUT / "docs/monitoring"
DIRECTORY = "/var/lib/prometheus/node-exporter"
SETTINGS = f'[node]\ntextfile = "{DIRECTORY}"\n[vm.102]\nstrict = true\ncpus = "4000"\n'
# Seconds between two scrapes, as Prometheus is told; a pass takes less.
PERIOD_S = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"),
]


class Node:
    """A sandbox whose timer writes metrics, and all that was scraped from it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.file = Path(sandbox.root + DIRECTORY, "pxsched.prom")
        self.file.parent.mkdir(parents=True)
        self.scrapes: list[str] = []
        path = Path(sandbox.root, "etc/pxsched/pxsched.toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SETTINGS)

    def create(self, vmid: int, **options: str | int) -> None:
        hook = {"hookscript": "local:snippets/pxsched", "memory": 32}
        self.sandbox.qm("create", vmid, **{**hook, **options})

    def scrape(self) -> None:
        """A pass, and what it leaves for the collector."""
        command = [sys.executable, "-m", "pxsched", "--root", self.sandbox.root, "tick"]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, check=True)
        self.scrapes.append(self.file.read_text())


def samples(text: str, *, kind: str = "") -> dict[str, float]:
    """By name and labels as they are written; only of the families of that kind."""
    names = {one.name for one in text_string_to_metric_families(text) if kind in ("", one.type)}
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    known = {key: float(value) for key, value in lines}
    return {key: value for key, value in known.items()
            if key.partition("{")[0].removesuffix("_total") in names}  # fmt: skip


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Recorded over a start, a hot-plugged vCPU, drift, a stop, another start, a refusal and a kill."""
    with Sandbox(accelerator=Accelerator.TCG, most_vcpus=4) as sandbox:
        sandbox.snippet("pxsched", CHECKOUT / "hooks/pxsched")
        found = Node(sandbox)
        found.create(100, cores=2, vcpus=1, affinity="1,0", hotplug="cpu")
        found.create(101)
        found.create(102)
        found.scrape()
        sandbox.qm("start", 100)
        sandbox.qm("start", 101)
        found.scrape()
        sandbox.qm("set", 100, vcpus=2)
        found.scrape()
        for _ in range(11):
            os.sched_setaffinity(sandbox.vcpus(100)[0], {0})
            found.scrape()
        assert sandbox.qm("start", 102, check=False).code
        sandbox.qm("stop", 100)
        found.scrape()
        sandbox.qm("start", 100)
        found.scrape()
        os.kill(sandbox.pid(101), signal.SIGKILL)
        found.scrape()
        yield found


def test_the_recording_shows_what_happened(node):
    last = samples(node.scrapes[-1])
    assert last["pxsched_passes_total"] == len(node.scrapes)
    assert last['pxsched_knob_drifts_total{plugin="vcpu"}'] == 11
    assert last['pxsched_vm_starts_refused_total{vmid="102"}'] == 1
    assert {key for key in last if key.startswith("pxsched_vm_cpus{")} == {
        'pxsched_vm_cpus{class="pinned",state="running",vmid="100"}'
    }
    assert 'pxsched_vm_run_seconds_total{vmid="101"}' in last, "what it ran is still so"


def test_no_counter_ever_goes_back(node):
    scrapes = [samples(text, kind="counter") for text in node.scrapes]
    for before, after in pairwise(scrapes):
        assert {key: value for key, value in before.items() if after.get(key, -1.0) < value} == {}
    ran = 'pxsched_vm_run_seconds_total{vmid="100"}'
    assert scrapes[-1][ran] > scrapes[1][ran] > 0


def test_promtool_finds_nothing_wrong_with_a_scrape(node, promtool):
    for text in node.scrapes:
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_alert_rules_are_rules(promtool):
    rules = str(MONITORING / "alerts.yml")
    done = subprocess.run([promtool, "check", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0 and "8 rules found" in done.stdout, done.stdout + done.stderr


def series(node: Node, extra: int) -> list[dict[str, str]]:
    """The recording as promtool takes it; what was scraped last goes on for `extra` more periods."""
    scrapes = [samples(text) for text in node.scrapes]
    found = []
    for key in {key for one in scrapes for key in one}:
        values = [str(one[key]) if key in one else "_" for one in (*scrapes, *[scrapes[-1]] * extra)]
        name, _, labels = key.rstrip("}").partition("{")
        labels = ",".join(['instance="pve1"', *([labels] if labels else [])])
        # Without a value once it is gone, as a scrape that lacks it makes it stale.
        ended = ["stale" if value == "_" and "_" not in values[:1] else value for value in values]
        found.append({"series": f"{name}{{{labels}}}", "values": " ".join(ended)})
    return found


def test_the_alarms_go_off_for_what_happened_and_for_nothing_else(node, promtool, tmp_path):
    at_end = len(node.scrapes) * PERIOD_S
    # promtool's clock begins at 1970: the last pass was long after that, so nothing looks overdue.
    expected = {
        "PxschedKnobsDrift": [{"instance": "pve1", "plugin": "vcpu", "severity": "warning"}],
        "PxschedStartRefused": [{"instance": "pve1", "vmid": "102", "severity": "critical"}],
        "PxschedDoesNotLook": [], "PxschedPassesTakeLong": [], "PxschedVmUnplaced": [],
        "PxschedKnobsRefused": [], "PxschedDedicatedCpusOpen": [],
    }  # fmt: skip
    document = {
        "rule_files": [str(MONITORING / "alerts.yml")],
        "evaluation_interval": f"{PERIOD_S}s",
        "tests": [{
            "interval": f"{PERIOD_S}s",
            "input_series": series(node, extra=5),
            "alert_rule_test": [
                {"alertname": name, "eval_time": f"{at_end}s", "exp_alerts": [
                    {"exp_labels": one, "exp_annotations": annotations(name, one)} for one in alerts
                ]}
                for name, alerts in expected.items()
            ],
        }],
    }  # fmt: skip
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(document))  # JSON is YAML
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def annotations(name: str, labels: dict[str, str]) -> dict[str, str]:
    """What the two alarms of the recording say."""
    if name == "PxschedKnobsDrift":
        summary = "pve1: somebody else turned what vcpu had set 11 times in an hour"
        return {"summary": summary, "action": "pxsched doctor"}
    vmid = labels["vmid"]
    summary = f"pve1: strict VM {vmid} was refused its start 1 times"
    return {"summary": summary, "action": f"pxsched plan {vmid}"}


def test_a_pass_that_does_not_come_is_noticed(promtool, tmp_path):
    file = tmp_path / "test.yml"
    alert = {"exp_labels": {"instance": "pve1", "severity": "critical"},
             "exp_annotations": {"summary": "pve1: pxsched has not looked at its VMs for 10m 0s",
                                 "action": "systemctl status pxsched.timer pxsched.service"}}  # fmt: skip
    values = {"series": 'pxsched_last_pass_timestamp_seconds{instance="pve1"}', "values": "0+0x20"}
    document = {"rule_files": [str(MONITORING / "alerts.yml")], "evaluation_interval": "1m", "tests": [{
        "interval": "1m", "input_series": [values],
        "alert_rule_test": [{"alertname": "PxschedDoesNotLook", "eval_time": "10m", "exp_alerts": [alert]},
                            {"alertname": "PxschedDoesNotLook", "eval_time": "5m", "exp_alerts": []}],
    }]}  # fmt: skip
    file.write_text(json.dumps(document))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard() -> dict:
    return json.loads((MONITORING / "dashboard.json").read_text())


def test_the_dashboards_queries_are_prometheus_queries(promtool, tmp_path):
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    exprs = [query.replace("$instance", ".*") for query in queries]
    rules = [{"record": f"q{number}", "expr": expr} for number, expr in enumerate(exprs)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(queries)} rules found" in done.stdout, done.stdout + done.stderr
