"""The lab's fixtures: one boot for all tests, and a node without guests for each."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import image, recipe
from lab.machine import BootFailed, Machine
from lab.node import Node
from lab.product import Product, Turned


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def booted_node() -> Iterator[Node]:
    try:
        built = image.get(recipe.HOST)
    except image.Unavailable as reason:
        pytest.skip(str(reason))
    with Machine(built) as machine:
        yield Node(machine)


@pytest.fixture
def node(booted_node: Node) -> Iterator[Node]:
    """The running lab. When a test fails the console's end is part of the report."""
    if not booted_node.machine.alive:
        raise BootFailed(f"the lab died:\n{booted_node.machine.console_tail()}")
    yield booted_node
    booted_node.clear_guests()


@pytest.fixture(scope="session")
def untouched(booted_node: Node) -> Turned:
    """What everything said before pxsched was ever there."""
    return Product(booted_node).turned()


@pytest.fixture
def product(node: Node, untouched: Turned) -> Iterator[Product]:
    """pxsched, installed and without settings. After each test nothing may be left turned."""
    product = Product(node)
    product.install()
    yield product
    product.reset()
    assert product.turned() == untouched


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    node = getattr(item, "funcargs", {}).get("node")
    if report.when == "call" and report.failed and isinstance(node, Node):
        report.sections.append(("lab console", node.machine.console_tail(15)))
