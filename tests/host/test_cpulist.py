"""CPU lists as people and the kernel write them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.errors import UserError
from pxsched.host import cpulist

cpus = st.integers(0, 2000)
sets = st.frozensets(cpus, max_size=80)
# What lists are made of, so that garbage comes near to them.
garbage = st.text(alphabet="0123456789-,:/ \0\n.xX_+٣é", max_size=60) | st.text(max_size=60)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", ()),
        ("0", (0,)),
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("0-7,32-39,8-15", (*range(8), *range(32, 40), *range(8, 16))),
        ("3,1,2,3", (3, 1, 2, 3)),
        ("5,0-1,5-6", (5, 0, 1, 5, 6)),
        (" 1, 2 ,3\n", (1, 2, 3)),
        ("0-31:2/8", (0, 1, 8, 9, 16, 17, 24, 25)),
        ("4-9:1/3", (4, 7)),
        ("0-3\0", (0, 1, 2, 3)),
        ("0,,2,", (0, 2)),
        ("65535", (65535,)),
    ],
)
def test_a_list_is_read_in_the_order_it_is_written(text, expected):
    assert cpulist.parse_ordered(text) == expected


@pytest.mark.parametrize(
    "text",
    ["x", "1-", "-1", "3-1", "1-2-3", "0x3", "1.5", "1 2", "0 - 3", "65536", "0-65536", "0-7:0/4", "0-7:5/4",
     "0-7:1/0", "1:1/2", "٣", "²", "1_0", "+1", "9" * 5000],
)  # fmt: skip
def test_what_is_no_list_is_refused_and_the_wrong_part_named(text):
    with pytest.raises(UserError, match="bad CPU list") as caught:
        cpulist.parse_ordered(f"0,{text},2")
    assert text[:40] in caught.value.message
    assert len(caught.value.message) < 300


def test_a_hostile_list_does_not_fill_the_memory():
    with pytest.raises(UserError):
        cpulist.parse("0-999999999")
    with pytest.raises(UserError):
        cpulist.parse(",".join(["0-65535"] * 10_000))


@given(sets)
def test_a_set_survives_writing_and_reading(wanted):
    assert cpulist.parse(cpulist.format(wanted)) == wanted


@given(st.lists(cpus, max_size=60))
def test_an_ordered_list_survives_writing_and_reading(wanted):
    assert cpulist.parse_ordered(cpulist.format_ordered(wanted)) == tuple(wanted)


@given(sets)
def test_what_is_written_is_the_shortest_ascending_list(wanted):
    text = cpulist.format(wanted)
    ends = [tuple(map(int, part.split("-"))) for part in text.split(",") if part]
    assert all(len(one) == 1 or one[0] < one[1] for one in ends)
    assert all(one[-1] + 1 < other[0] for one, other in pairwise(ends))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 20)), max_size=10))
def test_ranges_expand_in_written_order_duplicates_kept(ranges):
    text = ",".join(f"{first}-{first + more}" if more else str(first) for first, more in ranges)
    expected = [cpu for first, more in ranges for cpu in range(first, first + more + 1)]
    assert list(cpulist.parse_ordered(text)) == expected


@pytest.mark.parametrize(
    "cpus, text",
    [((), ""), ((3, 0, 1), "3,0-1"), ((0, 1, 2, 8), "0-2,8"), ((2, 1, 0), "2,1,0"), ((1, 1), "1,1")],
)
def test_only_ascending_runs_become_ranges(cpus, text):
    assert cpulist.format_ordered(cpus) == text


@given(sets)
def test_a_set_survives_the_form_of_a_bitmap(wanted):
    text = cpulist.format_mask(wanted)
    assert cpulist.parse_mask(text) == wanted
    assert all(len(word) == 8 for word in text.split(",")[1:])


@pytest.mark.parametrize(
    "text, expected",
    [("3", {0, 1}), ("2,00000001", {0, 33}), ("00000000,0000000f", {0, 1, 2, 3}), ("ff\0", set(range(8)))],
)
def test_a_bitmap_is_read_as_the_kernel_writes_it(text, expected):
    assert cpulist.parse_mask(text) == expected


@given(text=garbage)
def test_garbage_is_either_a_list_or_refused(effort, text):
    for parse in (cpulist.parse, cpulist.parse_ordered, cpulist.parse_mask):
        try:
            found = parse(text)
        except UserError:
            continue
        assert all(0 <= cpu <= cpulist.MAX_CPU for cpu in found)


@given(text=garbage)
def test_whatever_is_accepted_means_the_same_when_written_again(effort, text):
    try:
        found = cpulist.parse_ordered(text)
    except UserError:
        return
    assert cpulist.parse_ordered(cpulist.format_ordered(found)) == found
