"""Runs `pxsched WORDS` or the hook and kills it with SIGKILL at its N-th write of a file or a thread.

usage: killed.py N hook VMID PHASE | killed.py N pxsched WORD...
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pxsched import cli, hook
from tests import killing

set_affinity = os.sched_setaffinity
count = killing.die_at(int(sys.argv[1]))


def counted_set_affinity(tid: int, cpus: object) -> None:
    count()
    set_affinity(tid, cpus)


os.sched_setaffinity = counted_set_affinity
code = hook.main(sys.argv[3:]) if sys.argv[2] == "hook" else cli.main(sys.argv[3:])
sys.exit(code)
