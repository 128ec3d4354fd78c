"""A process that looks like QEMU from outside: its command line, the names of its threads, its QMP socket.

usage: stand_in_qemu.py SOCKET VCPUS [QEMU ARGUMENT...]; says when it is ready. Its guest does at once what
the balloon asks for.
"""

import json
import os
import socket
import sys
import threading

MIB = 1 << 20


def named(name: str) -> None:
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as stream:
        stream.write(name)


def wait(name: str, ready: threading.Barrier) -> None:
    if name.startswith("CPU "):
        cpus.append({"cpu-index": len(cpus), "thread-id": threading.get_native_id()})
    named(name)
    ready.wait()
    threading.Event().wait()


def serve(listener: socket.socket) -> None:
    actual = 2048 * MIB
    while True:
        peer, _ = listener.accept()
        try:
            with peer, peer.makefile("rw") as stream:
                print('{"QMP": {}}', file=stream, flush=True)
                for line in stream:
                    request = json.loads(line)
                    command = request["execute"]
                    if command == "balloon":
                        actual = request["arguments"]["value"]
                    answers = {"query-cpus-fast": cpus, "query-iothreads": []}
                    answer = {"actual": actual} if command == "query-balloon" else answers.get(command, {})
                    print(json.dumps({"return": answer}), file=stream, flush=True)
        except OSError:
            continue  # a client that was killed


cpus: list[dict[str, int]] = []
path, vcpus = sys.argv[1], int(sys.argv[2])
names = [*(f"CPU {vcpu}/KVM" for vcpu in range(vcpus)), f"vhost-{os.getpid()}", "IO iothread0"]
ready = threading.Barrier(len(names) + 1)
for name in names:
    threading.Thread(target=wait, args=(name, ready), daemon=True).start()
os.chdir(os.path.dirname(path))  # a socket's address is short
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.path.basename(path))
listener.listen()
ready.wait()
print("ready", flush=True)
serve(listener)
