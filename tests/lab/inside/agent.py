"""The lab's side of the channel to the tests: JSON requests a line each, JSON answers, many at once.

Runs inside the virtual node as root with nothing but the standard library. Requests:
  exec   argv, stdin, env, timeout_s, cwd  ->  rc, out, err
  read   globs                             ->  files: path to text; unreadable ones are left out
  write  path, text                        ->  errno: 0, or why the kernel refused
  masks  pids                              ->  threads: pid, tid, comm, cpus
Each request has an "id" and an "op", each answer the same "id", and "failed" when it could not be tried.
"""

import base64
import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

PORT_NAME = "lab.agent"


def port_path() -> str:
    for path in glob.glob("/sys/class/virtio-ports/*/name"):
        with open(path) as file:
            if file.read().strip() == PORT_NAME:
                return "/dev/" + path.split("/")[-2]
    raise FileNotFoundError(PORT_NAME)


def op_exec(request: dict[str, Any]) -> dict[str, Any]:
    environment = dict(os.environ, **request.get("env", {}))
    process = subprocess.Popen(
        request["argv"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment, cwd=request.get("cwd", "/"), start_new_session=True,
    )  # fmt: skip
    timed_out = False
    try:
        out, err = process.communicate(
            base64.b64decode(request.get("stdin", "")), timeout=request.get("timeout_s", 60)
        )
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    code = 124 if timed_out else process.returncode
    return {"rc": code, "out": base64.b64encode(out).decode(), "err": base64.b64encode(err).decode()}


def op_read(request: dict[str, Any]) -> dict[str, Any]:
    files = {}
    for pattern in request["globs"]:
        for path in glob.glob(pattern) if glob.has_magic(pattern) else [pattern]:
            try:
                with open(path, "rb") as file:
                    files[path] = file.read().decode(errors="replace")
            except OSError:
                continue
    return {"files": files}


def op_write(request: dict[str, Any]) -> dict[str, Any]:
    try:
        with open(request["path"], "w") as file:
            file.write(request["text"])
    except OSError as error:
        return {"errno": error.errno}
    return {"errno": 0}


def op_masks(request: dict[str, Any]) -> dict[str, Any]:
    threads = []
    for pid in request["pids"]:
        for tid in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
            try:
                with open(f"/proc/{pid}/task/{tid}/comm") as file:
                    comm = file.read().strip()
                threads.append([pid, int(tid), comm, sorted(os.sched_getaffinity(int(tid)))])
            except OSError:
                continue
    return {"threads": threads}


OPERATIONS = {"exec": op_exec, "read": op_read, "write": op_write, "masks": op_masks}


class Port:
    """The virtio-serial port; writing blocks while nobody outside reads."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self._lock = threading.Lock()

    def send(self, answer: dict[str, Any]) -> None:
        data = (json.dumps(answer) + "\n").encode()
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]

    def lines(self) -> Any:
        pending = b""
        while True:
            data = os.read(self._fd, 65536)
            if not data:
                time.sleep(0.2)
                continue
            *whole, pending = (pending + data).split(b"\n")
            yield from whole


def serve(port: Port, request: dict[str, Any]) -> None:
    try:
        answer = OPERATIONS[request["op"]](request)
    except Exception as error:  # noqa: BLE001 - the entry point of a request: whatever went wrong is the caller's to see
        answer = {"failed": f"{type(error).__name__}: {error}"}
    port.send({"id": request["id"], **answer})


def main() -> None:
    port = Port(port_path())
    with open("/proc/sys/kernel/random/boot_id") as file:
        port.send({"hello": file.read().strip()})
    for line in port.lines():
        try:
            request = json.loads(line)
        except ValueError:
            sys.stderr.write(f"not a request: {line[:80]!r}\n")
            continue
        threading.Thread(target=serve, args=(port, request), daemon=True).start()


main()
