"""JSON that may be damaged or hostile: bounded in every way, and asked for by type and range."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched import stored
from pxsched.stored import Damaged

BEYOND = [
    "Infinity", "-Infinity", "NaN", "1e400", "-1e400", "9" * 21, "[" * 100_000, '{"a":' * 50_000,
    "", "{", "nul", '{"a": 1e999}', "\ufeff{}",
]  # fmt: skip


@pytest.mark.parametrize("text", BEYOND, ids=range(len(BEYOND)))
def test_what_no_computer_of_ours_wrote_is_damage(text):
    with pytest.raises(Damaged):
        stored.parse(text)


def test_a_document_has_a_size():
    assert stored.parse("[1]", most_bytes=3) == [1]
    with pytest.raises(Damaged, match="4 bytes"):
        stored.parse("[1] ", most_bytes=3)


PARTS = {
    "lists": b"[],", "objects": b'{"a":0},', "numbers": b"-99,", "texts": '"a\xe9",'.encode(),
    "fractions": b"0.1,", "wide characters": b"x" * 1000, "members": b'"%d":0,',
}  # fmt: skip
# Reads documents of one kind, each larger than the one before, until one is refused.
GROWING = """
import re, sys, time
from pxsched import stored
def peak_kib():  # ru_maxrss begins with what the process had that started this one
    return int(re.search("VmHWM: *\\t *([0-9]+)", open("/proc/self/status").read())[1])
part, before_kib = bytes.fromhex(sys.argv[1]), peak_kib()
size = 1 << 18
while True:
    count = size // len(part)
    if b"%d" in part:
        document = b"{" + b"".join(part % number for number in range(count)) + b'"":0}'
    elif part[:1] == b"x":
        document = b'["' + part * count + b'\\\\ud83d\\\\ude00"]'
    else:
        document = b"[" + part * count + b"0]"
    begin = time.process_time()
    try:
        stored.parse(document)
    except stored.Damaged:
        break
    print(time.process_time() - begin, peak_kib() - before_kib)
    size += size // 2
"""


@pytest.mark.parametrize("kind", PARTS)
def test_no_document_of_any_size_takes_much_memory_or_long(kind):
    command = [sys.executable, "-c", GROWING, PARTS[kind].hex()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(read) > 1, "small ones are read"
    assert max(took_s for took_s, _ in read) < 1
    assert max(kib for _, kib in read) < 100 << 10


ATOMS = (
    st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip


@given(st.recursive(ATOMS, lambda one: st.lists(one) | st.dictionaries(st.text(), one), max_leaves=8))
def test_other_documents_are_as_json_says(effort, document):
    assert stored.parse(json.dumps(document)) == document


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_document_or_damage(effort, data):
    try:
        stored.parse(data)
    except Damaged as error:
        assert len(str(error)) < 200


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (stored.integer, [0, 5, stored.INT64], [-1, stored.INT64 + 1, True, 1.0, "1", None]),
        (stored.number, [0, 1.5], [-1, float("inf"), float("nan"), True, "1", 1e16]),
        (stored.text, ["", "x"], [1, None, "x" * 70_000]),
        (stored.truth, [True, False], [0, 1, None, "true"]),
        (stored.listed, [[], [1]], [(), {}, None, [0] * 70_000]),
        (stored.pair, [[1, 2]], [[1], [1, 2, 3], None, (1, 2)]),
        (stored.table, [{}, {"a": 1}], [[], None, {str(n): 0 for n in range(70_000)}]),
        (stored.vmid, ["0", "100", "999999999"], ["", "-1", "x", "1234567890", "٣", "1.0"]),
    ],
)  # fmt: skip
def test_a_value_is_of_its_type_and_in_its_range(read, good, bad):
    for value in good:
        assert read(value) is not None
    for value in bad:
        with pytest.raises(Damaged) as caught:
            read(value)
        assert len(str(caught.value)) < 200


def test_nothing_is_nothing_where_that_is_allowed():
    assert stored.maybe(stored.integer, None) is None and stored.maybe(stored.integer, 3) == 3


def test_objects_are_read_by_vmid():
    assert stored.by_vmid({"100": 1}, stored.integer) == {100: 1}
    with pytest.raises(Damaged):
        stored.by_vmid({"x": 1}, stored.integer)
