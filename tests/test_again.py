"""A test is tried again only where it measures a real machine, and not twice in a row."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SETUP = """
[tool.pytest.ini_options]
addopts = "--strict-markers --import-mode=importlib"
markers = ["slow", "lab", "measures"]
"""
TESTS = """
import pytest
from pathlib import Path

def fails_first(name):
    path = Path(name)
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    assert len(path.read_text()) % 2 == 0

@pytest.mark.measures
def test_that_measures():
    fails_first("measured")

@pytest.mark.measures
def test_that_measures_well():
    pass

def test_that_does_not():
    fails_first("computed")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    shutil.copy(HERE / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests/test_it.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text(SETUP)
    return tmp_path


def run(checkout: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest", *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_only_what_measures_is_tried_again_and_it_is_named(checkout):
    code, said = run(checkout)
    assert code == 1 and "1 failed, 2 passed" in said
    assert "FAILED tests/test_it.py::test_that_does_not" in said
    assert "needed a second try" in said
    assert "\ntests/test_it.py::test_that_measures\n" in said
    assert "test_that_measures_well" not in said


def test_who_needs_it_twice_in_a_row_has_failed(checkout):
    assert run(checkout, "-k", "measures")[0] == 0
    code, said = run(checkout, "--again")
    assert (code, "1 passed" in said) == (1, True)
    assert "::test_that_measures: FAILED, it needed it the last time, too" in said


def test_without_a_cache_it_is_tried_again_and_nothing_is_remembered(checkout):
    code, said = run(checkout, "-p", "no:cacheprovider", "-k", "measures")
    assert (code, "2 passed" in said, "INTERNALERROR" in said) == (0, True, False)
    assert "needed a second try" in said


@pytest.mark.slow
def test_who_does_not_need_it_the_next_time_is_forgotten(checkout):
    assert run(checkout, "-k", "measures")[0] == 0
    (checkout / "computed").write_text("x")
    assert run(checkout, "-k", "does_not")[0] == 0  # another run, of other tests, in between
    (checkout / "measured").write_text("x")
    assert run(checkout, "--again")[0] == 0
    code, said = run(checkout, "--again")
    assert (code, "3 deselected" in said) == (0, True), "nobody is left to be run"


@pytest.mark.slow
def test_it_is_remembered_by_several_workers_too(checkout):
    assert run(checkout, "-n", "2", "-k", "measures")[0] == 0
    assert run(checkout, "-n", "2", "-k", "measures")[0] == 1
