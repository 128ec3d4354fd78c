"""The state of the node for a Prometheus textfile collector: `pxsched report --prometheus FILE`.

Format: Prometheus text exposition format 0.0.4. Labels are numbers and our own words only: names and tags
come from tenants.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from pxsched import output
from pxsched.ledger.claim import Claim
from pxsched.ledger.journal import Entry
from pxsched.node.exclusive import Exclusive
from pxsched.report import exclusive


def render(
    claims: Iterable[Claim],
    entries: Mapping[str, Entry],
    run_delay: Callable[[Claim], Mapping[str, int] | None],
    checked: Iterable[Exclusive] = (),
) -> str:
    """All metrics. run_delay: nanoseconds a VM's threads ran and waited; None once it is gone. checked: who
    else may run on dedicated CPUs.
    """
    return output.lines(_lines(sorted(claims, key=lambda claim: claim.vmid), entries, run_delay, checked))


def _lines(
    claims: list[Claim],
    entries: Mapping[str, Entry],
    run_delay: Callable[[Claim], Mapping[str, int] | None],
    checked: Iterable[Exclusive],
) -> Iterator[str]:
    yield from _head("pxsched_vm_cpus", "gauge", "CPUs that a VM's vCPUs may use")
    for claim in claims:
        labels = f'vmid="{claim.vmid}",class="{claim.placement.vm_class}",state="{claim.state}"'
        yield f"pxsched_vm_cpus{{{labels}}} {len(claim.placement.cpus)}"
    what = "Dedicated CPUs of a VM on which others may run by the kernel's word"
    yield from _head("pxsched_dedicated_cpus_open", "gauge", what)
    yield from exclusive.metrics(checked)
    delays = [(claim.vmid, delay) for claim in claims if (delay := run_delay(claim)) is not None]
    for name, key, what in (
        ("pxsched_vm_run_seconds_total", "ran_ns", "Time the VM's threads ran"),
        ("pxsched_vm_wait_seconds_total", "waited_ns", "Time the VM's threads waited for a CPU"),
    ):
        yield from _head(name, "counter", what)
        for vmid, delay in delays:
            yield f'{name}{{vmid="{vmid}"}} {delay[key] / 1e9:.6f}'
    yield from _head("pxsched_knobs", "gauge", "Values that pxsched has changed and will put back")
    yield from _counted("pxsched_knobs", entries, lambda entry: 1)
    yield from _head("pxsched_knob_drifts_total", "counter", "Times somebody else turned one of them")
    yield from _counted("pxsched_knob_drifts_total", entries, lambda entry: entry.drifts)
    yield from _head("pxsched_knobs_refused", "gauge", "Knobs that the kernel would not set as wanted")
    yield from _counted("pxsched_knobs_refused", entries, lambda entry: int(bool(entry.note)))


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP {name} {what}."
    yield f"# TYPE {name} {kind}"


def _counted(name: str, entries: Mapping[str, Entry], worth: Callable[[Entry], int]) -> Iterator[str]:
    sums: dict[str, int] = {}
    for entry in entries.values():
        sums[entry.plugin] = sums.get(entry.plugin, 0) + worth(entry)
    for plugin, value in sorted(sums.items()):
        yield f'{name}{{plugin="{_label(plugin)}"}} {value}'


def _label(text: str) -> str:
    """Of another version's journal, perhaps."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
