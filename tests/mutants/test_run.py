"""The runner of mutants says which mistake nobody notices, and which the list no longer fits."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("mutants_run", Path(__file__).with_name("run.py"))
assert SPEC is not None and SPEC.loader is not None
mutants = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mutants)

LIST = """
# a remark
== a.py test_a.py
return x + 1 ==> return x - 1
y = 2 ==> y = 3
gone ==> lost
"""
SETUP = '[tool.pytest.ini_options]\nmarkers = ["slow", "lab"]\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("def f(x):\n    y = 2\n    return x + 1\n")
    (tmp_path / "test_a.py").write_text("from a import f\n\ndef test_f():\n    assert f(1) == 2\n")
    (tmp_path / "pyproject.toml").write_text(SETUP)
    return tmp_path


@pytest.mark.slow
def test_mistakes_are_noticed_or_not_and_the_tree_is_as_before(tree):
    before = (tree / "a.py").read_text()
    outcomes = [mutants.try_one(mutant, tree, mutants.Sound()) for mutant in mutants.read(LIST)]
    assert outcomes == ["killed", "survived", "does not fit any more"]
    assert (tree / "a.py").read_text() == before


def test_tests_that_fail_anyway_notice_nothing(tree):
    (tree / "test_a.py").write_text("def test_f():\n    assert False\n")
    [mutant, *_] = mutants.read(LIST)
    assert mutants.try_one(mutant, tree, mutants.Sound()) == "its tests fail without any mistake"


def test_a_line_that_is_there_twice_does_not_fit():
    [mutant, *_] = mutants.read(LIST)
    assert mutants.mutated(mutant, "return x + 1\nreturn x + 1\n") is None


@pytest.mark.parametrize("text", ["a ==> b", "== a.py\na ==> b", "== a.py test.py\nnothing"])
def test_a_line_that_is_no_mutant_is_an_error(text):
    with pytest.raises(ValueError, match="neither"):
        mutants.read(text)


def test_every_mistake_of_the_list_can_still_be_made():
    found = mutants.read(mutants.LIST.read_text())
    texts = {mutant.file: (mutants.CHECKOUT / mutant.file).read_text() for mutant in found}
    assert [str(mutant) for mutant in found if mutants.mutated(mutant, texts[mutant.file]) is None] == []


def test_the_list_names_a_hundred_and_tests_that_exist():
    found = mutants.read(mutants.LIST.read_text())
    assert len(found) >= 100
    assert [name for mutant in found for name in mutant.tests if not (mutants.CHECKOUT / name).exists()] == []
