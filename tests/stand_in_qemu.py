"""A process that looks like QEMU from outside: its command line, the names of its threads, its QMP socket.

usage: stand_in_qemu.py SOCKET VCPUS HOW TEXT [QEMU ARGUMENT...]; says when it is ready. HOW:
    obeys      as QEMU does, with a guest that does at once what the balloon asks for
    threads    the same in a guest's hands: some of its threads bear hostile names
    greeting   so, and it greets with TEXT, a JSON string
    error      so, and it answers every command with an error of this text
    answer     so, and it answers with this text
"""

import json
import os
import socket
import sys
import threading

MIB = 1 << 20
# A thread's name is at most 15 bytes.
HOSTILE = (b"\x1b[2J\n<0>FORGED", b"\x9b31m\r\x07\xe2\x80\xaeFORGED")


def wait(name: bytes, ready: threading.Barrier) -> None:
    tid = threading.get_native_id()
    with open(f"/proc/self/task/{tid}/comm", "wb") as stream:
        stream.write(name)
    if name.startswith(b"CPU "):
        cpus.append({"cpu-index": len(cpus), "thread-id": tid})
    ready.wait()
    threading.Event().wait()


def answer(command: str, arguments: dict[str, int]) -> object:
    if how == "error":
        return {"error": {"class": text, "desc": text}}
    if how == "answer" and command != "qmp_capabilities":
        return {"return": [text, {text: text}]}
    if command == "balloon":
        guest["actual"] = arguments["value"]
    known = {"query-cpus-fast": cpus, "query-iothreads": [], "query-balloon": guest}
    return {"return": known.get(command, {})}


def serve(listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        try:
            with peer, peer.makefile("rw", errors="surrogateescape") as stream:
                print(text if how == "greeting" else '{"QMP": {}}', file=stream, flush=True)
                for line in stream:
                    request = json.loads(line)
                    said = answer(request["execute"], request.get("arguments", {}))
                    print(json.dumps(said), file=stream, flush=True)
        except (OSError, UnicodeError):
            continue  # a client that was killed, or a text that is none


path, vcpus, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
text = json.loads(sys.argv[4])
guest = {"actual": 2048 * MIB}
cpus: list[dict[str, int]] = []
names = [b"IO iothread0", f"vhost-{os.getpid()}".encode(), *(HOSTILE if how != "obeys" else ())]
names += [f"CPU {vcpu}/KVM".encode() for vcpu in range(vcpus)]
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
