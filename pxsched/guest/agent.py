"""What a guest's agent says of its CPUs, where there is one: the time that was stolen from them.

The agent speaks QMP's language on a socket of its own, without a greeting, and may have answers left that
somebody else did not wait for: `guest-sync` tells where ours begin. Rules: QEMU's qga/qapi-schema.json
(`guest-sync`, `guest-get-cpustats`, since 7.1), PVE::QemuServer (RUN_DIR/VMID.qga).

Everything comes from the guest: only the share of its own figures is made of it.
"""

import secrets
from typing import Self

from pxsched.guest.qmp import Json, Qmp, QmpBusy, QmpProtocol
from pxsched.root import Root
from pxsched.value import Value

PATIENCE_S = 0.5
MOST_CPUS = 8192
_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


class Times(Value):
    """Of all the guest's CPUs together, in units of its own."""

    stolen: int
    all: int


class Agent(Qmp):
    """One short conversation with a guest's agent. Raises QmpBusy, QmpGone or QmpProtocol on entering."""

    def __init__(self, root: Root, vmid: int, *, patience_s: float = PATIENCE_S) -> None:
        super().__init__(root, vmid, patience_s=patience_s)
        self._name = f"{int(vmid)}.qga"

    def __enter__(self) -> Self:
        ready = False
        try:
            self._connect()
            token = secrets.randbelow(1 << 31)
            answer = self._call("guest-sync", {"id": token})
            while answer != token:
                answer = self._receive(QmpBusy("no answer from the agent")).get("return")
            ready = True
        finally:
            if not ready:
                self._socket.close()
        return self


def times(root: Root, vmid: int) -> Times:
    """Raises QmpError's children where there is no agent, it is too old, or the guest is no Linux."""
    with Agent(root, vmid) as agent:
        return parse(agent.execute("guest-get-cpustats"))


def parse(answer: Json) -> Times:
    """Raises QmpProtocol for anything but Linux's times."""
    if not isinstance(answer, list) or not 0 < len(answer) <= MOST_CPUS:
        raise QmpProtocol("guest-get-cpustats: no list of CPUs")
    stolen = everything = 0
    for item in answer:
        values = [item.get(name) for name in _TIMES] if isinstance(item, dict) else []
        numbers = [value for value in values if type(value) is int and 0 <= value < 1 << 63]
        if len(numbers) != len(_TIMES):
            raise QmpProtocol("guest-get-cpustats: a CPU without its times")
        stolen += numbers[-1]
        everything += sum(numbers)
    return Times(stolen, everything)
