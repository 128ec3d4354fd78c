"""What a node says of itself is small, comes back as it was, and is believed only where it can be true."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.cluster import machine, publication
from pxsched.cluster.publication import Device, Processor, Publication, Stranger, Vm
from pxsched.host import topology
from pxsched.placement.request import Holding, Host, VmClass
from pxsched.root import Root
from pxsched.settings.policy import Smt
from pxsched.stored import Damaged
from pxsched.value import replace


def captured(directory: Path) -> list[Path]:
    return [path / "root" for path in sorted(directory.iterdir()) if (path / "root").is_dir()]


def there_and_back(found: topology.Topology) -> topology.Topology:
    return machine.read(json.loads(json.dumps(machine.document(found))))


def test_captured_machines_come_back_as_they_were_and_are_small(machines):
    for root in captured(machines):
        found = topology.read(Root(str(root)))
        assert there_and_back(found) == replace(found, warnings=())
        assert len(json.dumps(machine.document(found))) < 4096


@pytest.mark.slow
def test_all_captured_machines_do(topologies):
    for root in captured(topologies):
        found = topology.read(Root(str(root)))
        assert there_and_back(found) == replace(found, warnings=()), root


def test_machines_that_are_alike_are_one_object(machines):
    body = machine.document(topology.read(Root(str(machines / "pepc-milan0" / "root"))))
    assert machine.read(json.loads(json.dumps(body))) is machine.read(json.loads(json.dumps(body)))


@pytest.fixture(scope="session")
def whole(machines: Path) -> Publication:
    """One with everything in it."""
    cpus = [frozenset((cpu,)) for cpu in range(4)]
    return Publication(
        node="pve2",
        at_s=1764000000.5,
        version="0.1.0",
        host=Host(
            replace(topology.read(Root(str(machines / "pepc-milan0" / "root"))), warnings=()),
            frozenset((0, 48)),
            frozenset((0,)),
            {0: 4096},
            {(0, 2): 128, (0, 0): 4096},
            busy={1: 0.25, 2: 0.25, 7: 1.0},
        ),
        vms=(
            Vm(Holding(100, VmClass.DEDICATED, tuple(cpus), Smt.ISOLATE), frozenset((0,)), 2048, {0: 1000},
               1763999000.0),
            Vm(
                Holding(101, VmClass.SHARED, (frozenset(range(8, 12)),) * 3, weight=50, load=0.5,
                        memory_mib={0: 1024}),
                frozenset((0,)), 1024,
            ),
        ),
        strangers=(
            Stranger(200, False, frozenset(range(96)), 1.5, {0: 512}),
            Stranger(201, True, frozenset((3,))),
        ),
        fence=(frozenset(range(90)), "AllowedCPUs of qemu.slice"),
        processor=Processor("AuthenticAMD", "AMD EPYC 7443", "0123", 3),
        devices={"0000:41:00.0": Device(0, 100), "0000:42:00.0": Device(None, 0)},
        local={"vm": {"100": {"class": "dedicated"}}},
    )  # fmt: skip


def text_of(said: Publication) -> bytes:
    return json.dumps(publication.document(said)).encode()


def test_a_publication_comes_back_as_it_was(whole):
    assert publication.parse("pve2", text_of(whole)) == whole


def test_of_tenants_it_has_vmids_and_nothing_else(pair):
    pair.vm("pve1", 100, "name: secret-name\ntags: secret-tag\ndescription: secret\ncores: 2\n", running=True)
    pair.publish("pve1")
    text = (pair.pve / "nodes/pve1/pxsched.json").read_text()
    assert "secret" not in text and '"100"' in text


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.text(max_size=8), st.just("0-8191"),
    st.just([]), st.just({}), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)  # fmt: skip


def spoil(document, path, leaf):
    """The document with another value somewhere: path chooses a way down."""
    here = document
    while True:
        keys = sorted(here) if isinstance(here, dict) else range(len(here))
        if not keys:
            return
        key = keys[path.pop(0) % len(keys)] if path else keys[0]
        if not path or not isinstance(here[key], dict | list) or not here[key]:
            here[key] = leaf
            return
        here = here[key]


@given(path=st.lists(st.integers(0, 30), min_size=1, max_size=5), leaf=LEAVES)
def test_whatever_a_node_writes_is_read_or_damaged_and_never_worse(whole, path, leaf, effort):
    document = json.loads(text_of(whole))
    spoil(document, list(path), leaf)
    try:
        back = publication.read("pve2", document)
    except Damaged:
        return
    assert max(back.host.topology.cpus) < machine.MOST_CPUS
    assert all(len(vm.held.vcpus) <= publication.MOST_VCPUS for vm in back.vms)


MOST_EXAMPLES = 1000


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"cores": ["0-3", "3-5"]}, "overlap"),
        ({"cores": []}, "no CPU"),
        ({"offline": "1"}, "both online and not"),
        ({"isolated": "9999"}, "9999"),
        ({"packages": [[0, "0-200"]]}, "no core has"),
        ({"nodes": [[0, "0", 1, [10, 20]], [0, "1", 1, [10, 20]]]}, "twice"),
        ({"cores": ["0-99999999"]}, "99999999"),
        ({"kinds": {"performance": 3}}, "3"),
    ],
)
def test_a_machine_that_cannot_be_is_damaged(whole, change, word):
    body = {**machine.document(whole.host.topology), **change}
    with pytest.raises(Damaged, match=word):
        machine.read(body)


def test_a_document_that_is_too_large_is_not_read():
    with pytest.raises(Damaged, match="too many"):
        publication.parse("pve2", b'{"schema":1,"x":"' + b"x" * publication.MOST_BYTES + b'"}')


def test_another_schema_is_not_understood(whole):
    with pytest.raises(Damaged, match="schema 2"):
        publication.read("pve2", {**publication.document(whole), "schema": 2})


@pytest.mark.parametrize("vcpus", ["", "0;", "4000*2"])
def test_a_vm_on_cpus_that_its_machine_has_not_is_damaged(whole, vcpus):
    body = publication.document(whole)
    next(iter(body["vms"].values()))[1] = vcpus
    with pytest.raises(Damaged, match="CPUs that the machine has not"):
        publication.read(whole.node, body)
