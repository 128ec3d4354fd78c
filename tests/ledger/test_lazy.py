"""Lines that stay text until somebody asks for them."""

import pytest

from pxsched.ledger.lazy import Block, Lazy
from pxsched.stored import Damaged

DATA = b"head\n100\tone\n1000\tmarked ten\n7\tseven\tmarked 7\nrest"
BEGIN, END = 4, len(DATA) - 5


@pytest.fixture
def decoded():
    return []


@pytest.fixture
def lazy(decoded):
    def decode(number, text):
        decoded.append(number)
        return text

    return Lazy(Block(DATA, BEGIN, END), {}, decode, str)


def text(lazy):
    return b"".join(lazy.pieces())


def test_only_what_is_asked_for_is_decoded(lazy, decoded):
    assert 100 in lazy and 10 not in lazy and lazy.get(10) is None
    assert list(lazy) == [100, 1000, 7] and len(lazy) == 3
    assert decoded == []
    assert lazy[100] == lazy[100] == "one" and decoded == [100]


def test_what_lies_beyond_the_block_is_not_in_it(lazy):
    assert "rest" not in lazy.block.lines().values() and "head" not in lazy.block.lines().values()


def test_lines_are_found_by_the_word_they_begin_with(lazy):
    assert lazy.block.beginning(b"marked") == [1000]


def test_what_was_not_changed_is_written_as_it_was_read(lazy):
    assert text(lazy) == DATA[BEGIN:END] and not lazy.changed
    lazy[100] = "one"
    assert text(lazy) == DATA[BEGIN:END] and not lazy.changed
    lazy[1000], lazy[8] = "TEN", "eight"
    del lazy[7]
    assert lazy.changed and text(lazy) == b"\n100\tone\n1000\tTEN\n8\teight"
    assert dict(lazy) == {100: "one", 1000: "TEN", 8: "eight"}


def test_what_was_removed_can_come_back(lazy):
    del lazy[7]
    with pytest.raises(KeyError):
        lazy[7]
    with pytest.raises(KeyError):
        del lazy[7]
    lazy[7] = "again"
    assert lazy[7] == "again" and text(lazy).endswith(b"\n7\tagain")


def test_those_that_read_the_same_do_not_see_each_others_changes(lazy):
    other = Lazy(lazy.block, {}, lambda number, text: text, str)
    lazy[100] = "changed"
    del lazy[7]
    assert other[100] == "one" and other[7] == "seven\tmarked 7"


@pytest.mark.parametrize("data", [b"\nx\ty", b"\n-1\ty", b"\n1234567890\ty", b"\n\ty", b"\nfoo"])
def test_a_line_without_number_is_damage(data):
    with pytest.raises(Damaged):
        Block(data, 0, len(data)).lines()
