#!/usr/bin/env python3
"""Where two busy threads land in a guest of 2 cores x 2 threads, told of its cores and not: bench/shape.py.

A Linux guest (emulated; it is the guest's choice that counts) starts two endless loops, looks ten times
which CPUs they are on, from one second on, ends them, and begins anew. vCPUs 0-1 and 2-3 are siblings.
"""

import argparse
import importlib
import re
import sys
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
# The tests' guest, as a package of its own.
package = types.ModuleType("shape")
package.__path__ = [str(HERE.parent / "tests" / "shape")]
sys.modules["shape"] = package
guest = importlib.import_module("shape.guest")

PLAIN = {"cores": "4", "memory": "512", "cpu": "Skylake-Server"}
SHAPED = PLAIN | {"args": "-smp sockets=1,dies=1,cores=2,threads=2"}
SCRIPT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
on() { $b sed 's/.*) //' "/proc/$1/stat" | $b cut -d' ' -f37; }
round=0
while [ $round -lt ROUNDS ]; do
  while :; do :; done & one=$!
  while :; do :; done & other=$!
  $b sleep 1
  look=0
  while [ $look -lt 10 ]; do
    echo "pair $(on $one) $(on $other)"
    $b sleep 0.1
    look=$((look + 1))
  done
  kill $one $other
  wait
  round=$((round + 1))
done
$b poweroff -f
"""


def shared(options: dict[str, str], rounds: int) -> tuple[int, int]:
    """Looks with both loops on one core, and all looks."""
    said = guest.boot(options, SCRIPT.replace("ROUNDS", str(rounds)), timeout_s=60 + 20 * rounds)
    pairs = [(int(one), int(other)) for one, other in re.findall(r"^pair (\d) (\d)\r?$", said, re.MULTILINE)]
    return sum(one // 2 == other // 2 for one, other in pairs), len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boots", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20, help="pairs of loops in each boot")
    chosen = parser.parse_args()
    for name, options in (("not told", PLAIN), ("told", SHAPED)):
        found = [shared(options, chosen.rounds) for _ in range(chosen.boots)]
        both, looks = (sum(column) for column in zip(*found, strict=True))
        print(
            f"{name:9} both on one core in {both} of {looks} looks ({100 * both / max(1, looks):.0f} %)",
            flush=True,
        )


if __name__ == "__main__":
    main()
