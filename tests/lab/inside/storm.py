"""Many VMs start at once, again and again, while passes run and hooks, starters, passes and QEMUs are killed.

    python3 -I storm.py ROUNDS VMID...     one JSON document a line: of starts alone, then of each round

Hooks, passes, threads and pins are real; for QEMU stands tests/stand_in_qemu.py. All are forks of this one,
which has loaded everything: a start of Python takes an emulated CPU a second, and a round has sixty.
Of every phase of the hook it tells how long that had a CPU, or stood in line for one, and how long it waited
for anything else.
"""

import contextlib
import gc
import glob
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

sys.path[:0] = glob.glob("/opt/pxsched/lib/python3*/site-packages")
hook = __import__("pxsched.hook", fromlist=["main"])
cli = __import__("pxsched.cli", fromlist=["main"])

RUN, CONFIGS = "/run/qemu-server", "/etc/pve/nodes/lab/qemu-server"
STAND_IN = "/lab/checkout/tests/stand_in_qemu.py"
STAND_INS_MODULES = (json, os, socket, sys, threading)  # loaded once, here
# What becomes of a start, and how a VM ends.
FATES = ("lives", "lives", "lives", "hook is killed", "starter is killed")
ENDS = ("stopped", "killed", "killed and nobody is told")
chance = random.Random(16)
said, tell = os.pipe()


def fork(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = work()
    finally:
        os._exit(code)


def outcome(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def silent(work: Callable[[], int]) -> int:
    """Without output, except what goes wrong."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    return work()


def report(**what: object) -> None:
    os.write(tell, (json.dumps(what) + "\n").encode())


# A start, as Proxmox makes it


def start(vmid: int, fate: str, after_s: float) -> int:
    if fate == "hook is killed":
        return phase(vmid, "pre-start", killed_after_s=after_s)
    if code := phase(vmid, "pre-start"):
        return code
    if fate == "starter is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    ready, write = os.pipe()
    fork(lambda: qemu(vmid, write))
    os.close(write)
    assert os.read(ready, 16) == b"ready\n"
    return phase(vmid, "post-start")


def phase(vmid: int, name: str, *, killed_after_s: float | None = None) -> int:
    began, ours = time.monotonic(), on_cpu_s("self")
    child = fork(lambda: silent(lambda: hook.main([str(vmid), name], {"PATH": os.defpath})))
    if killed_after_s is not None:
        time.sleep(killed_after_s)
        os.kill(child, signal.SIGKILL)
        return outcome(child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    cpu_s = on_cpu_s(child)
    waited_s = time.monotonic() - began - cpu_s - (on_cpu_s("self") - ours)
    code = outcome(child)
    report(vmid=vmid, phase=name, code=code, cpu_s=cpu_s, waited_s=max(0.0, waited_s))
    return code


def on_cpu_s(pid: int | str) -> float:
    with open(f"/proc/{pid}/schedstat") as file:
        ran, queued, _ = file.read().split()
    return (int(ran) + int(queued)) / 1e9


def qemu(vmid: int, ready: int) -> int:
    """Becomes a process that looks like QEMU: its command line is written over ours."""
    os.setsid()
    words = f"/usr/bin/kvm\0-pidfile\0/var/run/qemu-server/{vmid}.pid\0".encode()
    with open("/proc/self/stat") as file:
        start, end = map(int, file.read().rpartition(")")[2].split()[45:47])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(words.ljust(end - start, b"\0"))
    os.dup2(ready, 1)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{RUN}/{vmid}.qmp")
    with open(f"{RUN}/{vmid}.pid", "w") as file:
        file.write(str(os.getpid()))
    sys.argv = [STAND_IN, f"{RUN}/{vmid}.qmp", "1", "obeys", '""']
    runpy.run_path(STAND_IN, run_name="__main__")
    return 1


def end(vmid: int, pid: int, how: str) -> int:
    if how == "stopped":
        phase(vmid, "pre-stop")
    gone = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([gone], [], [])
    if how != "killed and nobody is told":
        os.unlink(f"{RUN}/{vmid}.pid")
        phase(vmid, "post-stop")
    return 0


# Passes


def passes() -> int:
    os.setpgid(0, 0)
    while True:
        one_pass()


def one_pass() -> None:
    report(tick=outcome(fork(lambda: silent(lambda: cli.main(["tick"])))))


def stop_passes(passing: int) -> None:
    """In the middle of one."""
    os.killpg(passing, signal.SIGKILL)
    os.waitpid(passing, 0)


# What is seen


def living(vmids: list[int]) -> dict[int, int]:
    """Process ids of the VMs whose QEMU lives."""
    found = {}
    for vmid in vmids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"{RUN}/{vmid}.pid") as file:
                pid = int(file.read())
            os.kill(pid, 0)
            found[vmid] = pid
    return found


def mask(pid: int) -> list[int]:
    """The CPUs of its one vCPU, as the kernel has them."""
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/comm") as file:
            if file.read().startswith("CPU "):
                return sorted(os.sched_getaffinity(int(tid)))
    raise AssertionError(f"{pid} has no vCPU")


def heard() -> list[dict[str, object]]:
    text = b""
    while select.select([said], [], [], 0)[0]:
        text += os.read(said, 65536)
    return [json.loads(line) for line in text.splitlines()]


def alone(vmids: list[int]) -> None:
    for vmid in vmids:
        outcome(fork(lambda vmid=vmid: start(vmid, "lives", 0)))
    for vmid, pid in living(vmids).items():
        end(vmid, pid, "stopped")
    print(json.dumps({"heard": heard()}), flush=True)


def one_round(vmids: list[int]) -> None:
    began = time.monotonic()
    chance.shuffle(vmids)
    passing = fork(passes)
    fates = {vmid: (chance.choice(FATES), chance.random() * 5) for vmid in vmids}
    starts = [fork(lambda vmid=vmid: start(vmid, *fates[vmid])) for vmid in vmids]
    for one in starts:
        outcome(one)
    alive = living(vmids)
    at_once = {vmid: mask(pid) for vmid, pid in alive.items()}
    stop_passes(passing)
    one_pass()
    settled = {vmid: mask(pid) for vmid, pid in alive.items()}
    passing = fork(passes)
    ends = {vmid: chance.choice(ENDS) for vmid in alive}
    for one in [fork(lambda vmid=vmid: end(vmid, alive[vmid], ends[vmid])) for vmid in alive]:
        outcome(one)
    stop_passes(passing)
    seen = {"at_once": at_once, "settled": settled, "took_s": time.monotonic() - began}
    print(json.dumps({**seen, "heard": heard()}), flush=True)


def load_everything(vmid: int) -> None:
    """By doing it once here."""
    gc.disable()
    ours = os.dup(1)
    for name in ("pre-start", "post-start", "pre-stop", "post-stop"):
        silent(lambda name=name: hook.main([str(vmid), name], {"PATH": os.defpath}))
    silent(lambda: cli.main(["tick"]))
    os.dup2(ours, 1)
    gc.freeze()


def main() -> None:
    rounds, vmids = int(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    os.makedirs(RUN, exist_ok=True)
    for vmid in vmids:
        with open(f"{CONFIGS}/{vmid}.conf", "w") as file:
            file.write("cores: 1\nmemory: 64\nballoon: 0\nhookscript: local:snippets/pxsched\n")
    try:
        load_everything(vmids[0])
        alone(vmids[:3])
        for _ in range(rounds):
            one_round(vmids)
    finally:
        for vmid in vmids:
            os.unlink(f"{CONFIGS}/{vmid}.conf")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{RUN}/{vmid}.pid")


main()
