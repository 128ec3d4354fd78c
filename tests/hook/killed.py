"""Runs `pxsched WORDS` or the hook and kills it with SIGKILL at its N-th write of a file or a thread.

usage: killed.py N hook VMID PHASE | killed.py N pxsched WORD...
"""

import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pxsched import cli, hook

left = int(sys.argv[1])


def count() -> None:
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)


def audited(event: str, arguments: tuple) -> None:
    opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if opens or event in ("os.rename", "os.remove", "os.mkdir", "socket.connect"):
        count()


set_affinity = os.sched_setaffinity


def counted_set_affinity(tid: int, cpus: object) -> None:
    count()
    set_affinity(tid, cpus)


os.sched_setaffinity = counted_set_affinity
sys.addaudithook(audited)
code = hook.main(sys.argv[3:]) if sys.argv[2] == "hook" else cli.main(sys.argv[3:])
sys.exit(code)
