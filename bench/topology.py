"""How long the topology of each captured machine takes to read: python3 bench/topology.py [DIR-OF-MACHINES].

DIR holds NAME/root for each machine; without it the few of tests/data and this machine are read. The time is
that of one call, the best and the median of several, with the files in the page cache.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pxsched.host import topology  # noqa: E402
from pxsched.root import Root  # noqa: E402

ROUNDS = 15


def measure_ms(root: Root) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        topology.read(root)
        times.append((time.perf_counter() - before) * 1000)
    return sorted(times)


def report(name: str, root: Root) -> None:
    times = measure_ms(root)
    cpus = len(topology.read(root).online)
    print(f"{name:46} {cpus:5} CPUs  best {times[0]:6.1f} ms  median {statistics.median(times):6.1f} ms")


def main() -> None:
    report("this machine", Root("/"))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        if len(sys.argv) == 1:
            archive = HERE.parent / "tests" / "data" / "machines.tar.xz"
            subprocess.run(["tar", "-xJf", archive, "-C", directory], check=True)
        for root in sorted(directory.glob("*/root")):
            report(root.parent.name, Root(str(root)))


if __name__ == "__main__":
    main()
