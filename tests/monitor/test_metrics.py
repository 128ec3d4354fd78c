"""Metrics as Prometheus reads them, and who gets to see them."""

import os
import stat
import sys
from functools import partial

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pxsched import cli
from pxsched.errors import UserError
from pxsched.guest.identity import Identity
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.journal import Entry
from pxsched.monitor import families, textfile
from pxsched.monitor.families import Facts
from pxsched.monitor.passes import Passes
from pxsched.monitor.runs import Run, Time
from pxsched.node.exclusive import Exclusive, Kind, Sharer
from pxsched.placement.request import Placement, VmClass
from pxsched.proof.result import Brief, Worth
from pxsched.root import Root
from pxsched.settings.policy import NodeSettings
from pxsched.version import VERSION


def claim(vmid: int, *cpus: int, balloon_mib: int | None = None) -> Claim:
    vcpus = tuple(frozenset({cpu}) for cpu in cpus)
    placement = Placement(vmid, VmClass.PINNED, vcpus, frozenset({0}), frozenset({0}))
    return Claim(placement, State.RUNNING, balloon_mib=balloon_mib)


FACTS = Facts(
    (claim(101, 2), claim(100, 0, 1, balloon_mib=512)),
    {
        "affinity:1,1": Entry(100, "vcpu", "0-3", "1", 1, 5, 2),
        "irq:9,x": Entry(100, "interrupts", "0", "1", 1, note="no"),
    },
    (Exclusive(100, frozenset({0, 1}), (Sharer(Kind.VM, "VM 200", frozenset({1})),)),),
    Passes(3, 0.75, 1.7e9, 0.25, {100: 2}, {100: 4}, {"vcpu": 5}, 6, (102,)),
    {100: Run(7, Time(2_500_000_000, 500_000_000)), 99: Run(7, Time(1, 0))},
    {103: 2},
    {100: 0.25, 99: 0.5},
    {100: 640.0},
    (Brief(100, Identity(), 1e9, "", (Worth("home", "stock", "instructions", 0.07, True),
                                      Worth("home", "stock", "waiting", -5.0, False))),),
)  # fmt: skip


def samples(facts: Facts) -> dict[str, float]:
    """By name and labels, as Prometheus's own parser reads them."""
    found = {}
    for family in text_string_to_metric_families(families.render(facts)):
        for one in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in one.labels.items())
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


def test_every_fact_is_a_sample():
    assert samples(FACTS) == {
        f"pxsched_build_info{{version={VERSION}}}": 1,
        "pxsched_vm_cpus{class=pinned,state=running,vmid=100}": 2,
        "pxsched_vm_cpus{class=pinned,state=running,vmid=101}": 1,
        **{f"pxsched_dedicated_cpus_open{{to={kind},vmid=100}}": int(kind is Kind.VM) for kind in Kind},
        "pxsched_vm_run_seconds_total{vmid=99}": 1e-9,
        "pxsched_vm_run_seconds_total{vmid=100}": 2.5,
        "pxsched_vm_wait_seconds_total{vmid=99}": 0,
        "pxsched_vm_wait_seconds_total{vmid=100}": 0.5,
        "pxsched_vm_contention_ratio{vmid=100}": 0.25,
        "pxsched_vm_balloon_bytes{vmid=100}": 640 << 20,
        "pxsched_vm_balloon_target_bytes{vmid=100}": 512 << 20,
        "pxsched_vm_starts_refused_total{vmid=103}": 2,
        "pxsched_proof_difference_ratio{base=stock,figure=instructions,told=1,vmid=100,way=home}": 0.07,
        "pxsched_proof_difference_ratio{base=stock,figure=waiting,told=0,vmid=100,way=home}": -0.05,
        "pxsched_knobs{plugin=interrupts}": 1,
        "pxsched_knobs{plugin=vcpu}": 1,
        "pxsched_knobs_refused{plugin=interrupts}": 1,
        "pxsched_knobs_refused{plugin=vcpu}": 0,
        "pxsched_passes_total": 3,
        "pxsched_pass_seconds_total": 0.75,
        "pxsched_last_pass_timestamp_seconds": 1.7e9,
        "pxsched_last_pass_seconds": 0.25,
        "pxsched_moves_total{vmid=100}": 2,
        "pxsched_balloon_changes_total{vmid=100}": 4,
        "pxsched_knob_drifts_total{plugin=vcpu}": 5,
        "pxsched_failures_total": 6,
        "pxsched_vms_unplaced": 1,
    }


def test_everything_has_its_kind_and_a_sentence():
    for family in text_string_to_metric_families(families.render(FACTS)):
        assert family.documentation.endswith(".")
        counts = any(one.name.endswith("_total") for one in family.samples)
        assert family.type == ("counter" if counts else "gauge")


def test_a_label_from_a_damaged_journal_stays_one(tmp_path):
    entries = {"x": Entry(100, 'a"b\\c\nd', "0", "1", 1)}
    assert samples(Facts(entries=entries))['pxsched_knobs{plugin=a"b\\c?d}'] == 1


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UserError) as told:
        families.render(Facts())
    assert told.value.hint == "apt-get install python3-prometheus-client"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The timer's own file, and what writes it."""
    monkeypatch.setattr(textfile, "text", lambda _root: "a 1\n")
    (tmp_path / "metrics").mkdir()
    return tmp_path / "metrics/pxsched.prom", partial(textfile.publish, Root(str(tmp_path)), "/metrics")


def test_the_file_is_whole_and_readable_by_everybody(published):
    file, publish = published
    before = os.umask(0o077)
    try:
        publish()
    finally:
        os.umask(before)
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("a 1\n", 0o644)
    assert os.listdir(file.parent) == ["pxsched.prom"]


@pytest.mark.parametrize("name", ["pxsched.prom", "pxsched.prom.pxsched-new"])
def test_the_timer_follows_no_link_that_somebody_left_there(published, tmp_path, name):
    file, publish = published
    (tmp_path / "precious").write_text("precious")
    (file.parent / name).symlink_to(tmp_path / "precious")
    publish()
    assert (tmp_path / "precious").read_text() == "precious"
    assert os.listdir(file.parent) == ["pxsched.prom"] and file.read_text() == "a 1\n"


@pytest.mark.parametrize("wrong", ["relative", "/a/../etc", "/a b", "/", 5, "/a\n"])
def test_only_a_plain_directory_can_be_named(wrong):
    with pytest.raises(ValueError, match="no plain directory"):
        NodeSettings.declared["textfile"].parse(wrong)


def test_a_report_shows_the_same_on_the_screen_and_in_a_file(tmp_path, capsys):
    root, file = tmp_path / "root", tmp_path / "out.prom"
    (root / "sys/devices/system/cpu").mkdir(parents=True)
    (root / "sys/devices/system/cpu/online").write_text("0\n")
    assert cli.main(["--root", str(root), "report", "--prometheus", "-"]) == 0
    shown = capsys.readouterr().out
    assert cli.main(["--root", str(root), "report", "--prometheus", str(file)]) == 0
    assert file.read_text() == shown
    assert "pxsched_passes_total 0.0" in shown
