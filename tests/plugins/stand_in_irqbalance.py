"""A process that answers as irqbalance does, and obeys at once instead of at its next scan.

usage: stand_in_irqbalance.py DIRECTORY BANNED; says when it is ready.
"""

import os
import select
import socket
import sys

banned, cpus = sys.argv[2], "00000000"
with open("/proc/self/comm", "w") as stream:
    stream.write("irqbalance")
os.chdir(sys.argv[1])
listener = socket.socket(socket.AF_UNIX)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
listener.bind(f"irqbalance{os.getpid()}.sock")
listener.listen()
poll = select.poll()
poll.register(listener, select.POLLIN)
print("ready", flush=True)
while True:
    poll.poll()
    peer, _ = listener.accept()
    with peer:
        request = peer.recv(499).decode()
        if request.startswith("settings ban irqs "):
            banned = request.removeprefix("settings ban irqs ").replace("NONE", "")
        elif request.startswith("settings cpus "):
            listed = request.removeprefix("settings cpus ").replace("NULL", "")
            mask = 0
            for part in filter(None, listed.split(",")):
                first, _, last = part.partition("-")
                for cpu in range(int(first), int(last or first) + 1):
                    mask |= 1 << cpu
            cpus = f"{mask:08x}"
        elif request == "setup":
            irqs = "".join(f"IRQ {irq} LOAD 0 DIFF 0 CLASS other " for irq in banned.split())
            try:
                peer.sendall(f"SLEEP 10 {irqs}BANNED {cpus}".encode())
            except BrokenPipeError:
                pass  # a client that was killed
