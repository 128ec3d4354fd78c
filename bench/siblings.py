"""Where two busy threads land in a guest of 2 cores x 2 threads, told of its cores and not told.

usage: bench/siblings.py [--boots N] [--rounds N]

A Linux guest is emulated with four vCPUs, of which 0-1 and 2-3 are siblings; it is the guest's scheduler
that chooses, so it does not matter that nothing is fast here. In each round it starts two endless loops,
looks five times where they are, and ends them. One guest has what Proxmox says by itself, the other what
`pxsched shape --apply` adds.
"""

import argparse
import importlib
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]
guest = importlib.import_module("shape.guest")

PLAIN = {"cores": "4", "memory": "512", "cpu": "Skylake-Server"}
GUESTS = {"not told": PLAIN, "told": PLAIN | {"args": "-smp sockets=1,dies=1,cores=2,threads=2"}}
SCRIPT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
round=0
while [ $round -lt ROUNDS ]; do
  $b sh -c 'while :; do :; done' & one=$!
  $b sh -c 'while :; do :; done' & other=$!
  $b sleep 0.3
  for look in 1 2 3 4 5; do
    echo "pair $($b cut -d' ' -f39 /proc/$one/stat) $($b cut -d' ' -f39 /proc/$other/stat)"
    $b sleep 0.1
  done
  $b kill $one $other
  wait
  round=$((round + 1))
done
$b poweroff -f
"""


def looks(options: dict[str, str], rounds: int) -> list[bool]:
    """At each look of one boot, whether both loops are on one core."""
    cpu_s = guest.CPU_S + 3 * rounds
    said = guest.boot(options, SCRIPT.replace("ROUNDS", str(rounds)), cpu_s=cpu_s, most_s=20 * cpu_s)
    pairs = re.findall(r"^pair (\d) (\d)\r?$", said, re.MULTILINE)
    return [int(one) // 2 == int(other) // 2 for one, other in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boots", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20, help="pairs of loops in each boot")
    chosen = parser.parse_args()
    for name, options in GUESTS.items():
        found = [look for _ in range(chosen.boots) for look in looks(options, chosen.rounds)]
        assert len(found) == 5 * chosen.boots * chosen.rounds, "every look was made"
        share = 100 * sum(found) / len(found)
        print(f"{name:8}  both on one core in {sum(found)} of {len(found)} looks ({share:.0f} %)", flush=True)


if __name__ == "__main__":
    main()
