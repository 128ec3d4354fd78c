"""The scripts of docs/ that make the manual page and the shells' completions, run as a build runs them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def made() -> Callable[..., str]:
    """What a script prints, with nothing but Python itself."""

    def make(script: str, *words: str) -> str:
        command = ["/usr/bin/python3", "-BIS", str(DOCS / script), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout

    return make
