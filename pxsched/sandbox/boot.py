"""What a VM of the sandbox boots, and whether KVM can run it.

A VM's kind (`--guest rom|linux`) and the accelerator are the sandbox's own business and stand beside the
node's files, never in VMID.conf. KVM counts only when it runs a guest at a real processor's speed: one that
interprets every instruction boots no Linux.
"""

import json
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from pxsched.errors import UserError
from pxsched.sandbox import linux, rom
from pxsched.sandbox.commandline import Accelerator, Boot, Kind
from pxsched.sandbox.node import Node

_SETTINGS = "sandbox/settings.json"
_ROM = "sandbox/rom.bin"
_PROBE_MIB = 2
_PROBE_S = 0.1
_HARDWARE_ROUNDS = 3_000_000
"""Rounds of the burning loop in the probe's time: a real processor does tens of millions, an interpreter
less than one."""


def choose_kind(node: Node, vmid: int, kind: Kind) -> None:
    node.own(vmid, "guest").write_text(kind)


def kind(node: Node, vmid: int) -> Kind:
    path = node.own(vmid, "guest")
    return Kind(path.read_text()) if path.exists() else Kind.ROM


def forget(node: Node, vmid: int) -> None:
    for path in node.path("sandbox").glob(f"{vmid}.*"):
        path.unlink()


def configure(node: Node, *, accelerator: Accelerator | None = None, most_vcpus: int | None = None) -> None:
    """Fix the accelerator (None: as the machine can), and how many CPUs the node claims (None: as it has)."""
    settings = {"accelerator": accelerator, "most_vcpus": most_vcpus}
    node.path(_SETTINGS).write_text(json.dumps({key: value for key, value in settings.items() if value}))


def prepare(node: Node, vmid: int) -> Boot:
    """Everything the VM's start needs, made ready."""
    emulator = node.path("usr/bin/kvm")  # the name Proxmox starts QEMU by
    if not emulator.is_symlink():
        emulator.symlink_to(qemu())
    if kind(node, vmid) is Kind.ROM:
        image = node.path(_ROM)
        if not image.exists():
            _write_whole(image, rom.image())
        node.own(vmid, "memory").unlink(missing_ok=True)
    else:
        linux.files()
    return recall(node, vmid)


def recall(node: Node, vmid: int) -> Boot:
    """What a VM that is running was started with."""
    settings = _settings(node)
    accelerator = settings.get("accelerator") or probe(node)
    most_vcpus = int(settings.get("most_vcpus") or os.cpu_count() or 1)
    own_kind = kind(node, vmid)
    files = (str(node.path(_ROM)),) if own_kind is Kind.ROM else linux.files()
    return Boot(own_kind, files, Accelerator(str(accelerator)), most_vcpus)


def qemu() -> str:
    for name in ("qemu-system-x86_64", "kvm"):
        if path := shutil.which(name):
            return path
    raise UserError("QEMU is missing", hint="apt-get install qemu-system-x86")


def probe(node: Node) -> Accelerator:
    """KVM when it really runs guests, else TCG; tried once a sandbox."""
    note = node.path("sandbox/accelerator")
    if not note.exists():
        found = Accelerator.KVM if _kvm_speed() >= _HARDWARE_ROUNDS else Accelerator.TCG
        _write_whole(note, found.encode())
    return Accelerator(note.read_text())


def _kvm_speed() -> int:
    """Rounds that a guest's loop makes under KVM in the probe's time; 0 where there is no KVM."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return 0
    with tempfile.TemporaryDirectory(prefix="pxs-") as directory:
        image, memory = Path(directory, "rom"), Path(directory, "memory")
        image.write_bytes(rom.image())
        with memory.open("w+b") as file:
            file.truncate(_PROBE_MIB << 20)
            with mmap.mmap(file.fileno(), _PROBE_MIB << 20) as view:
                view[rom.WISH_ADDRESS] = 1
                return _rounds(image, memory, view)


def _rounds(image: Path, memory: Path, view: mmap.mmap) -> int:
    backend = f"memory-backend-file,id=ram,size={_PROBE_MIB}M,mem-path={memory},share=on"
    with subprocess.Popen(
        [
            qemu(),
            *("-accel", "kvm", "-cpu", Accelerator.KVM.cpu, "-m", str(_PROBE_MIB), "-bios", str(image)),
            *("-object", backend, "-machine", "type=pc,memory-backend=ram"),
            *("-nodefaults", "-display", "none"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as guest:
        deadline = time.monotonic() + 3
        while not _counter(view) and guest.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        before = _counter(view)
        time.sleep(_PROBE_S)
        guest.kill()
        return _counter(view) - before


def _counter(view: mmap.mmap) -> int:
    return int.from_bytes(view[rom.COUNTER_ADDRESS : rom.COUNTER_ADDRESS + 4], "little")


def _settings(node: Node) -> dict[str, str | int]:
    path = node.path(_SETTINGS)
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _write_whole(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)
