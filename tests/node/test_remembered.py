"""Files that are remembered between passes may hold anything: that costs a pass, is set aside and named."""

import json
import random
import resource
import time
from pathlib import Path

import pytest

from pxsched.balance import balloon, record, samples
from pxsched.knobs import balloon as knob
from pxsched.node import remembered
from pxsched.node.balancing import Balancer
from pxsched.node.remembered import Last
from pxsched.root import Root

ROOMY_KIB = 100 << 10
WHOLE = {
    "schema": 1,
    "boot_id": "",
    "samples": samples.Snapshot(
        {100: samples.Reading(100, 7, 10**12, {11: samples.Counter(5, 6), 12: samples.Counter(1, 2)}, 3)}
    ).to_json(),
    "cpu": record.State({100: record.Record(7, (samples.Rate(0.5, 0.1, 0.6),), 12.5, 99.0)}).to_json(),
    "memory": balloon.State({100: balloon.Record(7, 1.0, 300.0, target_mib=512)}).to_json(),
    "last": {"at": 1.7e9, "acted_at": 1.7e9, "acted": ["moved VM 100"], "skipped": {"101": "no balloon"},
             "standings": {"100": [0.5, 0.1, 1.0, 0.0]}, "balloons": {"100": 512.5}},
}  # fmt: skip
ODD = [b"", b"9" * 30, b"1e999", b"Infinity", b"null", b"[", b"}", b"-1", b'"x"', b"\xff"]
TOLD = {"100": [7, 512], "101": [9, 2048]}


@pytest.fixture
def root(tmp_path) -> Root:
    (tmp_path / "run/pxsched").mkdir(parents=True)
    return Root(str(tmp_path))


def put(root: Root, file: str, content: bytes | str) -> None:
    data = content.encode() if isinstance(content, str) else content
    Path(root.path(file)).write_bytes(data)


def test_what_was_remembered_is_read_back(root):
    put(root, remembered.FILE, json.dumps(WHOLE))
    known, damage = remembered.load(root, set_aside=True)
    assert damage == "" and known.last.to_json() == WHOLE["last"]
    read_back = known.before.to_json(), known.cpu.to_json(), known.memory.to_json() if known.memory else None
    expected = [json.loads(json.dumps(WHOLE[name])) for name in ("samples", "cpu", "memory")]
    assert json.loads(json.dumps(read_back)) == expected
    put(root, knob.FILE, json.dumps(TOLD))
    assert knob.told(root) == {100: (7, 512), 101: (9, 2048)}


@pytest.mark.parametrize(
    "damaged",
    [
        b"", b"\0" * 50, "[]", "3", "{}", '{"boot_id": ""}'[:-1], '{"boot_id": 1}', "[" * 100_000,
        '{"boot_id": "", "samples": {"100": []}}', '{"boot_id": "", "cpu": {"100": []}}',
        '{"boot_id": "", "memory": {"guests": {"100": [null]}}}', '{"boot_id": "", "last": {"at": Infinity}}',
        '{"boot_id": "", "samples": {"100": [1e999, 1, 1, {}]}}', f'{{"boot_id": "", "at": {"9" * 400}}}',
        '{"boot_id": "", "last": {"standings": {"100": ["a", 1, 1, 1]}}}',
        '{"boot_id": "", "samples": {"../../etc": [1, 1, 1, {}]}}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_set_aside_named_and_forgotten(root, damaged):
    put(root, remembered.FILE, damaged)
    balancer = Balancer(root)
    assert "balance.json is damaged" in balancer._damage and "kept as" in balancer._damage
    assert Path(root.path(f"{remembered.FILE}.damaged")).exists()
    assert Balancer(root)._damage == ""


def test_who_only_looks_leaves_a_damaged_record_where_it_is(root):
    put(root, remembered.FILE, "[")
    assert remembered.last(root) == Last()
    assert Path(root.path(remembered.FILE)).exists()


def mutated(chance: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(len(data))
        data[place : place + chance.randrange(4)] = chance.choice(ODD)
    return bytes(data)


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_content_ends_a_pass_takes_long_or_much_memory(root, count):
    chance = random.Random(13)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole, told = json.dumps(WHOLE).encode(), json.dumps(TOLD).encode()
    for _ in range(count):
        put(root, remembered.FILE, mutated(chance, whole))
        put(root, knob.FILE, mutated(chance, told))
        begin = time.process_time()
        remembered.load(root, set_aside=True)
        assert all(0 <= size_mib <= knob.MOST_MIB for _, size_mib in knob.told(root).values())
        assert time.process_time() - begin < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < ROOMY_KIB
