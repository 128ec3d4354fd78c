"""Whether a processor has what a VM's CPU type wants of it, as far as that can be known."""

import pytest

from pxsched.cluster import cputype
from pxsched.cluster.publication import Processor

MODELS = {
    "plain": {"flags": "+avx;-pcid"},
    "milan": {"reported-model": "EPYC-Milan"},
    "copy": {"reported-model": "host"},
    "tile": {"reported-model": "host", "flags": "+amx-tile"},
}
OLD = Processor("GenuineIntel", "Old", "1", 2, frozenset(("aes", "avx", "fpu")))
NEW = Processor("GenuineIntel", "New", "2", 3, frozenset(("aes", "avx", "fpu", "avx2", "amx_tile", "pcid")))
AMD = Processor("AuthenticAMD", "Rome", "3", 3, frozenset(("aes", "avx", "fpu", "avx2", "pcid")))
UNKNOWN = Processor()


def said(cpu: str, here: Processor, there: Processor, *, runs: bool = True) -> tuple[list[str], list[str]]:
    """What is against it, and what is not known."""
    costs: list[str] = []
    found = [*cputype.against(cputype.parse(cpu, MODELS), here, there, "b", costs, runs=runs)]
    return found, costs


@pytest.mark.parametrize(
    ("cpu", "name", "model", "flags"),
    [
        ("", "kvm64", "kvm64", set()),
        ("host,flags=+pcid;-aes", "host", "host", {"pcid"}),
        ("cputype=EPYC", "EPYC", "EPYC", set()),
        ("custom-plain,flags=+pcid", "custom-plain", "kvm64", {"avx", "pcid"}),
        ("custom-plain,flags=-avx", "custom-plain", "kvm64", set()),
        ("custom-milan,hidden=1", "custom-milan", "EPYC-Milan", set()),
        ("custom-gone", "custom-gone", "", set()),
        ("a=b,,=,c", "kvm64", "kvm64", set()),
    ],
)
def test_a_cpu_type_is_a_model_with_flags(cpu, name, model, flags):
    assert cputype.parse(cpu, MODELS) == (name, model, frozenset(flags))


@pytest.mark.parametrize(
    ("cpu", "here", "there", "against", "unknown"),
    [
        ("", OLD, UNKNOWN, "", ""),
        ("kvm64,flags=+pcid", NEW, OLD, "b has no CPU flag pcid", ""),
        ("kvm64,flags=+pcid", UNKNOWN, OLD, "b has no CPU flag pcid", ""),
        ("kvm64,flags=+hv-evmcs", NEW, OLD, "", ""),
        ("kvm64,flags=+spec-ctrl", NEW, OLD, "", "the CPU flag spec-ctrl is not known"),
        ("kvm64,flags=+aes", OLD, UNKNOWN, "", "the CPU flag aes is not known"),
        ("custom-copy", NEW, OLD, "another processor (Old, without amx_tile, avx2, pcid)", ""),
        ("x86-64-v3", NEW, OLD, "CPU type x86-64-v3 needs more than b has (x86-64-v2)", ""),
        ("x86-64-v3", OLD, NEW, "", ""),
        ("Skylake-Server", OLD, NEW, "", ""),
        ("Skylake-Server", NEW, OLD, "", "all of CPU type Skylake-Server is not known"),
        ("custom-milan", NEW, AMD, "", "all of CPU type custom-milan is not known"),
        ("host", OLD, NEW, "b has another processor (New)", ""),
        ("host", OLD, OLD, "", ""),
        ("host", OLD, UNKNOWN, "", "whether the processors are alike is not known"),
        ("custom-gone", OLD, OLD, "CPU type custom-gone is not defined in the cluster", ""),
    ],
)
def test_what_is_missing_is_said_and_what_is_not_known_is_no_refusal(cpu, here, there, against, unknown):
    found, costs = said(cpu, here, there)
    assert len(found) == bool(against) and len(costs) == bool(unknown)
    assert against in "".join(found) and unknown in "".join(costs)


def test_a_stopped_vm_that_copies_the_host_may_go_anywhere():
    assert said("host", NEW, AMD, runs=False) == ([], [])
    assert said("custom-tile", NEW, AMD, runs=False)[0] == ["b has no CPU flag amx-tile"]
