"""The node as metrics, by Prometheus's own library.

Names and units as https://prometheus.io/docs/practices/naming/ has them. Labels are numbers and our own words
only: names and tags come from tenants. What is counted goes up as long as the node is up.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from pxsched.errors import UserError
from pxsched.ledger.claim import Claim
from pxsched.ledger.journal import Entry
from pxsched.monitor.passes import Passes
from pxsched.monitor.runs import Run
from pxsched.node.exclusive import Exclusive, Kind
from pxsched.output import printable
from pxsched.proof.figure import BY_NAME
from pxsched.proof.result import Brief
from pxsched.value import NOTHING, Value
from pxsched.version import VERSION

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

MIB = 1 << 20
Rows = Iterable[tuple[tuple[object, ...], float]]


class Facts(Value):
    """What the metrics are made of. entries: the journal. exclusive: who may run on dedicated CPUs.

    By VMID: runs; refused: starts; contention: 0 to 1, as last measured; balloons_mib: left to each guest.
    proofs: what was measured of VMs.
    """

    claims: Collection[Claim] = ()
    entries: Mapping[str, Entry] = NOTHING
    exclusive: Collection[Exclusive] = ()
    passes: Passes = Passes()
    runs: Mapping[int, Run] = NOTHING
    refused: Mapping[int, int] = NOTHING
    contention: Mapping[int, float] = NOTHING
    balloons_mib: Mapping[int, float] = NOTHING
    proofs: Collection[Brief] = ()


def render(facts: Facts) -> str:
    """All metrics in the text format 0.0.4. Raises UserError where the library is missing."""
    try:
        import prometheus_client
    except ImportError as error:
        hint = "apt-get install python3-prometheus-client"
        raise UserError("metrics need prometheus_client", hint=hint) from error
    registry = prometheus_client.CollectorRegistry()
    registry.register(_Collector(facts))
    return str(prometheus_client.generate_latest(registry), "utf-8")


class _Collector:
    """What the library asks for what there is."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> "Iterator[Metric]":
        facts = self._facts
        yield _gauge("pxsched_build_info", "The program that wrote this", [((VERSION,), 1)], "version")
        yield from _vms(facts)
        yield from _knobs(facts.entries)
        yield from _passes(facts.passes)
        yield _gauge(
            "pxsched_proof_difference_ratio",
            "What a way to run the VM made of the figure that decides",
            (((proof.vmid, one.way, one.base, one.figure, int(one.told)), one.difference / _scale(one.figure))
             for proof in facts.proofs for one in proof.worth),
            "vmid", "way", "base", "figure", "told",
        )  # fmt: skip


def _scale(figure: str) -> int:
    """What makes a ratio of a figure's difference."""
    return 1 if figure not in BY_NAME or BY_NAME[figure].relative else 100


def _vms(facts: Facts) -> "Iterator[Metric]":
    claims = sorted(facts.claims, key=lambda vm: vm.vmid)
    held = {vm.vmid for vm in claims}
    yield _gauge(
        "pxsched_vm_cpus", "CPUs that a VM's vCPUs may use",
        (((vm.vmid, vm.placement.vm_class, vm.state), len(vm.placement.cpus)) for vm in claims),
        "vmid", "class", "state",
    )  # fmt: skip
    yield _gauge(
        "pxsched_dedicated_cpus_open",
        "Dedicated CPUs of a VM on which others may run by the kernel's word",
        (((vm.vmid, kind), len(vm.open_to(kind))) for vm in facts.exclusive for kind in Kind),
        "vmid", "to",
    )  # fmt: skip
    ran = {vmid: run.total.ran_ns / 1e9 for vmid, run in facts.runs.items()}
    yield _counter("pxsched_vm_run_seconds_total", "Time the VM's threads ran", _by(ran), "vmid")
    waited = {vmid: run.total.waited_ns / 1e9 for vmid, run in facts.runs.items()}
    what = "Time the VM's threads waited for a CPU"
    yield _counter("pxsched_vm_wait_seconds_total", what, _by(waited), "vmid")
    lacks = {vmid: lack for vmid, lack in facts.contention.items() if vmid in held}
    what = "Part of the CPU time it is due that the VM lacked at the last pass"
    yield _gauge("pxsched_vm_contention_ratio", what, _by(lacks), "vmid")
    sizes = {vmid: mib * MIB for vmid, mib in facts.balloons_mib.items() if vmid in held}
    yield _gauge("pxsched_vm_balloon_bytes", "Memory the VM's balloon leaves it", _by(sizes), "vmid")
    targets = {vm.vmid: vm.balloon_mib * MIB for vm in claims if vm.balloon_mib is not None}
    yield _gauge("pxsched_vm_balloon_target_bytes", "What its balloon is to leave it", _by(targets), "vmid")
    what = "Starts of a strict VM that were refused"
    yield _counter("pxsched_vm_starts_refused_total", what, _by(facts.refused), "vmid")


def _knobs(entries: Mapping[str, Entry]) -> "Iterator[Metric]":
    held: dict[str, int] = {}
    refused: dict[str, int] = {}
    for entry in entries.values():
        held[entry.plugin] = held.get(entry.plugin, 0) + 1
        refused[entry.plugin] = refused.get(entry.plugin, 0) + bool(entry.note)
    yield _gauge("pxsched_knobs", "Values that pxsched has changed and will put back", _by(held), "plugin")
    what = "Knobs that the kernel would not set as wanted"
    yield _gauge("pxsched_knobs_refused", what, _by(refused), "plugin")


def _passes(passes: Passes) -> "Iterator[Metric]":
    yield _counter("pxsched_passes_total", "Passes of the timer", [((), passes.count)])
    yield _counter("pxsched_pass_seconds_total", "Time all passes took", [((), passes.seconds)])
    yield _gauge("pxsched_last_pass_timestamp_seconds", "When the last pass began", [((), passes.began_s)])
    yield _gauge("pxsched_last_pass_seconds", "Time the last pass took", [((), passes.lasted_s)])
    yield _counter("pxsched_moves_total", "Moves of a VM's vCPUs", _by(passes.moves), "vmid")
    what = "Sizes a guest's balloon was given"
    yield _counter("pxsched_balloon_changes_total", what, _by(passes.balloons), "vmid")
    what = "Times the timer found a knob turned by somebody else"
    yield _counter("pxsched_knob_drifts_total", what, _by(passes.drifts), "plugin")
    yield _counter("pxsched_failures_total", "What passes could not do", [((), passes.failures)])
    what = "VMs for which the last pass found no place"
    yield _gauge("pxsched_vms_unplaced", what, [((), len(passes.unplaced))])


def _by(values: Mapping[int, float] | Mapping[str, float]) -> Rows:
    """A row for each VM or plugin, in order."""
    return [((key,), value) for key, value in sorted(values.items())]


def _gauge(name: str, what: str, rows: Rows, *labels: str) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(name, f"{what}.", labels=labels), rows)


def _counter(name: str, what: str, rows: Rows, *labels: str) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(name, f"{what}.", labels=labels), rows)


def _filled(family: "GaugeMetricFamily | CounterMetricFamily", rows: Rows) -> "Metric":
    for labels, value in rows:
        family.add_metric([printable(str(label)) for label in labels], value)
    return family
