"""What all tests share: how many examples a property gets, who may be tried again, captured machines.

A property test that asks for `effort` runs twice: with few examples always, with many as a slow test.

A test that measures a real machine (`measures`, `lab`) is tried once more when it fails; no other is. Each
that needed it is named at the end and remembered in pytest's cache; when it runs the next time and needs it
again, it has failed. On a new machine there is no next time: CI runs those once more in the end (`--again`).
"""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).resolve().parent
# All of the corpora where they lie beside this checkout, else what of them may be copied. Modules read it.
_BESIDE = HERE.parent.parent / "shared" / "corpora"
os.environ.setdefault("PXSCHED_CORPORA", str(_BESIDE if _BESIDE.is_dir() else HERE / "data" / "corpora"))
CORPORA = Path(os.environ["PXSCHED_CORPORA"])
MANY = "many examples"

_UNHURRIED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
# The same examples every time: a run judges the change at hand, not the luck of the draw. To search further:
# tests/run --slow --hypothesis-profile=search
_SAME = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": _UNHURRIED}
settings.register_profile("default", max_examples=60, **_SAME)
settings.register_profile("search", max_examples=500, deadline=None, suppress_health_check=_UNHURRIED)
settings.load_profile("default")
THOROUGH = settings(max_examples=10_000, **_SAME)
# Where hypothesis keeps the settings of a test; it offers no way to change them between two runs of one test.
_KEPT = "_hypothesis_internal_use_settings"

AGAIN = "pxsched/tried-again"
"""Where pytest's cache has the tests that needed a second try when they ran last."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--again", action="store_true", help="only the tests that needed a second try last time")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("measures") or item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    if config.getoption("again"):
        known = _remembered(config)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in known])
        items[:] = [item for item in items if item.nodeid in known]


def _remembered(config: pytest.Config) -> set[str]:
    """The tests that needed a second try; none where pytest keeps no cache (`-p no:cacheprovider`)."""
    cache = getattr(config, "cache", None)
    return set() if cache is None else set(cache.get(AGAIN, []))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    ran = {one.nodeid for name in ("passed", "failed", "error") for one in reporter.stats.get(name, ())}
    needed = {one.nodeid for one in reporter.stats.get("rerun", ())}
    before = _remembered(config)
    if (cache := getattr(config, "cache", None)) is not None:
        cache.set(AGAIN, sorted((before - ran) | needed))
    config.stash[_TWICE] = needed & before
    if needed & before:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    elif config.getoption("again") and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


_TWICE = pytest.StashKey[set[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    needed = sorted({one.nodeid for one in terminalreporter.stats.get("rerun", ())})
    if needed:
        terminalreporter.section("needed a second try")
    for name in needed:
        twice = name in terminalreporter.config.stash.get(_TWICE, set())
        terminalreporter.line(f"{name}: FAILED, it needed it the last time, too" if twice else name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "effort" in metafunc.fixturenames:
        metafunc.parametrize("effort", ["a few examples", pytest.param(MANY, marks=pytest.mark.slow)])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    effort = item.callspec.params.get("effort") if hasattr(item, "callspec") else None
    if effort is not None:
        assert hasattr(item.obj, _KEPT), "this version of hypothesis keeps its settings elsewhere"
        # Tests whose examples each write files say that fewer must do.
        most = getattr(item.module, "MOST_EXAMPLES", THOROUGH.max_examples)
        thorough = settings(THOROUGH, max_examples=most)
        setattr(item.obj, _KEPT, thorough if effort == MANY else settings.default)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Machines, configurations and tables."""
    return CORPORA


@pytest.fixture(scope="session")
def topologies(corpora: Path, request: pytest.FixtureRequest) -> Path:
    """The directory of all captured machines: NAME/root and NAME/expected.json.

    It is kept in pytest's cache: these are 180,000 files.
    """
    archive = corpora / "topologies.tar.xz"
    directory = Path(request.config.cache.mkdir("topologies"))
    ready = directory / "unpacked-from"
    stamp = f"{archive.stat().st_size} {archive.stat().st_mtime_ns}"
    with open(directory.parent / "topologies.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once unpack once
        if not ready.exists() or ready.read_text() != stamp:
            shutil.rmtree(directory)
            directory.mkdir()
            subprocess.run(["tar", "-xJf", archive, "-C", directory], check=True)
            ready.write_text(stamp)
    return directory


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The few captured machines of tests/data, shaped as those of `topologies`."""
    directory = tmp_path_factory.mktemp("machines")
    subprocess.run(["tar", "-xJf", HERE / "data" / "machines.tar.xz", "-C", directory], check=True)
    return directory
