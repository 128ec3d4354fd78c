"""QEMU in a guest's hands: its threads bear hostile names, and its QMP says what it likes.

usage: hostile_qemu.py SOCKET HOW TEXT [QEMU ARGUMENT...]; says when it is ready.
HOW: `error` answers every command with an error of this text; `greeting` greets with it; `answer` answers
with it; `threads` answers as QEMU would.
"""

import json
import os
import socket
import sys
import threading


def named(name: bytes, ready: threading.Barrier) -> None:
    tid = threading.get_native_id()
    with open(f"/proc/self/task/{tid}/comm", "wb") as stream:
        stream.write(name)
    if name.startswith(b"CPU"):
        cpus.append({"cpu-index": 0, "thread-id": tid})
    ready.wait()
    threading.Event().wait()


def answer(command: str) -> object:
    if command == "qmp_capabilities" and how != "error":
        return {"return": {}}
    if how == "error":
        return {"error": {"class": text, "desc": text}}
    if how == "answer":
        return {"return": [text, {text: text}]}
    known = {"query-cpus-fast": cpus, "query-iothreads": [], "query-balloon": {"actual": 512 << 20}}
    return {"return": known.get(command, {})}


def serve(listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        try:
            with peer, peer.makefile("rw", errors="surrogateescape") as stream:
                print(text if how == "greeting" else '{"QMP": {}}', file=stream, flush=True)
                for line in stream:
                    print(json.dumps(answer(json.loads(line)["execute"])), file=stream, flush=True)
        except (OSError, UnicodeError):
            continue


path, how = sys.argv[1:3]
text = json.loads(sys.argv[3])
cpus: list[dict[str, int]] = []
# A thread's name is at most 15 bytes.
names = [b"CPU 0/KVM", b"\x1b[2J\n<0>FORGED", b"\x9b31m\r\x07\xe2\x80\xaeFORGED"]
ready = threading.Barrier(len(names) + 1)
for name in names:
    threading.Thread(target=named, args=(name, ready), daemon=True).start()
os.chdir(os.path.dirname(path))  # a socket's address is short
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.path.basename(path))
listener.listen()
ready.wait()
print("ready", flush=True)
serve(listener)
