"""Frozen values: as dataclasses, for less."""

import pytest

from pxsched.value import NOTHING, Memo, Value, fields, items, plain, replace


class Point(Value):
    kind = "point"

    x: int
    y: int = 7


class Named(Point):
    name: str = ""


def test_fields_are_given_by_place_by_name_or_by_default():
    assert (Point(1, 2).x, Point(1, y=2).y, Point(x=1).y) == (1, 2, 7)
    assert Named(1, name="a") == Named(1, 7, "a")


@pytest.mark.parametrize(
    "build",
    [
        lambda: Point(), lambda: Point(1, 2, 3), lambda: Point(1, z=3), lambda: Point(1, x=1),
        lambda: Point(1, 2, z=3), lambda: Point(y=1), lambda: Point(1, kind="x"),
        lambda: replace(Point(1), z=1),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_fields_is_a_type_error(build):
    with pytest.raises(TypeError, match="Point"):
        build()


def test_nothing_changes_it():
    point = Point(1)
    for name in ("x", "z", "kind"):
        with pytest.raises(AttributeError, match="frozen"):
            setattr(point, name, 2)
    with pytest.raises(AttributeError, match="frozen"):
        del point.x
    assert point == Point(1)


def test_equal_are_those_of_one_class_whose_fields_are_equal():
    assert Point(1) == Point(1, 7) and hash(Point(1)) == hash(Point(1, 7))
    assert Point(1) != Point(2) and Point(1) != Named(1) and Point(1) != (1, 7)


def test_replace_leaves_the_original_and_what_was_worked_out_from_it():
    point = Point(1)
    vars(point)["cached"] = 5
    assert replace(point, y=2) == Point(1, 2) and point == Point(1)
    assert "cached" not in vars(replace(point, y=2))


def test_it_says_what_it_is():
    assert repr(Named(1, 2, "a")) == "Named(x=1, y=2, name='a')"
    assert fields(Named) == {"x": int, "y": int, "name": str}
    assert list(items(Point(1))) == [("x", 1), ("y", 7)]


def test_plain_is_what_json_takes():
    assert plain({"p": (Point(1),), "n": NOTHING}) == {"p": [{"x": 1, "y": 7}], "n": {}}


def test_what_was_worked_out_is_kept_as_long_as_all_that_was_given_is_equal():
    memo, worked = Memo(), []

    def work():
        worked.append(1)
        return len(worked)

    assert [memo.of(100, (Point(1), "a"), work) for _ in range(3)] == [1, 1, 1]
    assert memo.of(200, (Point(1), "a"), work) == 2
    assert memo.of(100, (Point(1), "b"), work) == 3
    assert memo.of(100, (Point(2), "b"), work) == 4
    assert memo.of(100, (Point(1), "a"), work) == 5  # only the last is known
    memo.keep({200})
    assert [memo.of(vmid, (Point(1), "a"), work) for vmid in (200, 100)] == [2, 6]
