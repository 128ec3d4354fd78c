#!/usr/bin/env python3
"""What a proof costs while it runs: CPU time of `pxsched prove`, with its children, in per cent of one CPU.

    python3 bench/prove.py [--vms 1 10] [--seconds 60]

In a sandbox with so many real guests, of which one is proven with blocks of 15 seconds. Writes a table to the
standard output.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from pxsched.sandbox.commandline import Accelerator  # noqa: E402
from pxsched.sandbox.sandbox import Sandbox  # noqa: E402

LIMIT_PERCENT = 0.5


def used_s(pid: int) -> float:
    """User and system time of the process and its ended children: fields 14 to 17 of proc_pid_stat(5)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def cost_percent(vms: int, seconds: float) -> float:
    with Sandbox(accelerator=Accelerator.TCG, most_vcpus=4) as sandbox:
        sandbox.snippet("pxsched", CHECKOUT / "hooks/pxsched")
        for vmid in range(100, 100 + vms):
            sandbox.qm("create", vmid, memory=32, cores=2, hookscript="local:snippets/pxsched")
            sandbox.qm("start", vmid)
        words = [sys.executable, "-m", "pxsched", "--root", sandbox.root, "prove", "100", "--for", "20m"]
        environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        with subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL) as running:
            time.sleep(5)  # what it takes to begin is no cost of running
            begin_s, before_s = time.monotonic(), used_s(running.pid)
            time.sleep(seconds)
            used = (used_s(running.pid) - before_s) / (time.monotonic() - begin_s)
            running.send_signal(signal.SIGINT)
        return used * 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vms", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    print("| VMs on the node | CPU, % of one |\n|---:|---:|", flush=True)
    worst = 0.0
    for vms in options.vms:
        percent = cost_percent(vms, options.seconds)
        worst = max(worst, percent)
        print(f"| {vms} | {percent:.2f} |", flush=True)
    return int(worst > LIMIT_PERCENT)


if __name__ == "__main__":
    sys.exit(main())
