"""`tests/run --mutants`: a fixed list of small mistakes, each of which some test has to notice.

usage: run.py [--workers N] [WORD...]     only mutants with a WORD in their file or text

Each mutant is one replacement in one line, made in a copy of the tree; then the tests that the list names for
the file are run, up to the first that fails. A mutant that all of them pass is a survivor: a test is missing.
A line that is not there any more, or twice, is reported as well: the list is to be mended.

The list is `list.txt`. A line `== FILE TESTS...` begins the mutants of a file, a line each: `old ==> new`.

mutmut (3.8) and cosmic-ray (8.7) are not used: both make their mutants by themselves, of every operator in
every line, thousands that take hours, many of which change nothing that matters; neither takes a list. They
are not in Debian, and mutmut's own machinery takes the place of the modules that our hook's tests start anew.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("list.txt")
LONGEST_S = 240
PASSED, FAILED, INTERRUPTED = 0, 1, 2  # pytest's exit codes


class Mutant(NamedTuple):
    file: str
    tests: tuple[str, ...]
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}: {self.old} ==> {self.new}"


def read(text: str) -> list[Mutant]:
    """The list. Raises ValueError for a line that is not of its form."""
    found: list[Mutant] = []
    file, tests = "", list[str]()
    for line in text.splitlines():
        if line.startswith("== "):
            file, *tests = line.removeprefix("== ").split()
        elif line.strip() and not line.startswith("#"):
            old, arrow, new = line.partition(" ==> ")
            if not arrow or not file or not tests:
                raise ValueError(f"neither a file nor a mutant: {line}")
            found.append(Mutant(file, tuple(tests), old.strip(), new.strip()))
    return found


def mutated(mutant: Mutant, text: str) -> str | None:
    """The file's text with the mistake in it; None where the list no longer fits."""
    if text.count(mutant.old) != 1 or mutant.old == mutant.new:
        return None
    return text.replace(mutant.old, mutant.new)


class Sound:
    """Which tests pass as the tree is, each tried once for all workers."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], bool] = {}
        self._lock = threading.Lock()

    def are(self, tree: Path, names: tuple[str, ...]) -> bool:
        with self._lock:
            if names not in self._found:
                self._found[names] = tests(tree, names) == PASSED
            return self._found[names]


def try_one(mutant: Mutant, tree: Path, sound: Sound) -> str:
    """What became of it: `killed`, `survived`, or why nobody can say."""
    path = tree / mutant.file
    text = path.read_text() if path.is_file() else ""
    changed = mutated(mutant, text)
    if changed is None:
        return "does not fit any more"
    if not sound.are(tree, mutant.tests):
        return "its tests fail without any mistake"
    path.write_text(changed)
    try:
        code = tests(tree, mutant.tests)
    finally:
        path.write_text(text)
    return {PASSED: "survived", FAILED: "killed", INTERRUPTED: "killed"}.get(
        code, f"pytest ended with {code}"
    )


def tests(tree: Path, names: tuple[str, ...]) -> int:
    """Runs these tests in the tree; one that takes too long has failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x"]
    command += ["-m", "not slow and not lab", "--timeout=60", *names]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(
            command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=LONGEST_S, check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return FAILED


def work(waiting: "queue.SimpleQueue[Mutant]", outcomes: dict[Mutant, str], sound: Sound) -> None:
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        tree = Path(directory) / "tree"
        ignored = shutil.ignore_patterns(
            ".git", ".venv*", ".pytest_cache", "__pycache__", ".mypy_cache", ".hypothesis"
        )
        shutil.copytree(CHECKOUT, tree, ignore=ignored, symlinks=True)
        while True:
            try:
                mutant = waiting.get_nowait()
            except queue.Empty:
                return
            outcomes[mutant] = try_one(mutant, tree, sound)
            if outcomes[mutant] != "killed":
                print(f"{outcomes[mutant].upper()}: {mutant}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="tries the mutants of list.txt")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("words", nargs="*", metavar="WORD")
    options = parser.parse_args()
    chosen = [
        one
        for one in read(LIST.read_text())
        if all(re.search(re.escape(word), str(one)) for word in options.words)
    ]
    begin = time.monotonic()
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in chosen:
        waiting.put(mutant)
    outcomes: dict[Mutant, str] = {}
    sound = Sound()
    workers = [
        threading.Thread(target=work, args=(waiting, outcomes, sound)) for _ in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    killed = sum(outcome == "killed" for outcome in outcomes.values())
    print(f"{killed} of {len(chosen)} mutants were noticed, in {time.monotonic() - begin:.0f} s")
    return 0 if chosen and killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
