"""What real QEMU builds from options: started as Proxmox would, stopped before it runs, and asked."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pxsched.guest import config
from pxsched.host import cpulist


class Built(NamedTuple):
    """One vCPU as QEMU made it: (socket, die), core in that, thread in that; its node."""

    group: tuple[int, int]
    core: tuple[int, int, int]
    thread: int
    socket: int
    node: int


SYSTEMS = ("qemu-system-x86_64",)


def debian_13s() -> tuple[str, ...]:
    """QEMU 10 out of the lab's image, with the libraries there; empty where no image has been made."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from lab.image import cache_directory

    for root in cache_directory().glob("trixie-*/root"):
        libraries = root / "usr/lib/x86_64-linux-gnu"
        files = [word for name in ("qemu", "seabios") for word in ("-L", str(root / "usr/share" / name))]
        loader = (str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries))
        return (*loader, str(root / "usr/bin/qemu-system-x86_64"), *files)
    return ()


def command(options: Mapping[str, str], emulator: Sequence[str] = SYSTEMS) -> list[str]:
    """Processors and memory as Proxmox writes them (`config_to_command`, `Memory::config`), then `args`."""
    vm = config.machine(config.Config(options=options))
    most = vm.sockets * vm.cores
    line = [*emulator, "-S", "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg"]
    line += ["-smp", f"{options.get('vcpus', most)},sockets={vm.sockets},cores={vm.cores},maxcpus={most}"]
    line += ["-cpu", options.get("cpu", "kvm64"), "-m", str(vm.memory_mib)]
    nodes = vm.guest_nodes
    if vm.numa and not nodes:
        nodes = tuple(
            config.GuestNode(frozenset(range(n * vm.cores, (n + 1) * vm.cores)), vm.memory_mib // vm.sockets)
            for n in range(vm.sockets)
        )
    for number, node in enumerate(nodes if vm.numa else ()):
        cpus = "".join(f",cpus={part}" for part in cpulist.format(node.cpus).split(","))
        line += ["-object", f"memory-backend-ram,id=ram{number},size={node.memory_mib}M"]
        line += ["-numa", f"node,nodeid={number}{cpus},memdev=ram{number}"]
    return [*line, "-qmp", "stdio", *shlex.split(options.get("args", ""))]


def build(options: Mapping[str, str], emulator: Sequence[str] = SYSTEMS) -> tuple[list[Built], int]:
    """By vCPU index; and how many there could be. Fails when QEMU refuses."""
    pipe = subprocess.PIPE
    qemu = subprocess.Popen(command(options, emulator), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    asked = ("qmp_capabilities", "query-cpus-fast", "query-hotpluggable-cpus", "quit")
    said, complaint = qemu.communicate("".join(json.dumps({"execute": name}) + "\n" for name in asked), 60)
    assert qemu.returncode == 0, complaint
    assert not [line for line in complaint.splitlines() if "not present in any NUMA" in line], complaint
    answers = [message["return"] for message in map(json.loads, said.splitlines()) if "return" in message]
    vcpus = sorted(answers[1], key=lambda vcpu: vcpu["cpu-index"])
    assert [vcpu["cpu-index"] for vcpu in vcpus] == list(range(len(vcpus)))
    return [_built(vcpu["props"]) for vcpu in vcpus], len(answers[2])


def _built(props: Mapping[str, int]) -> Built:
    socket, die = props["socket-id"], props.get("die-id", 0)
    core = (socket, die, props["core-id"])
    return Built((socket, die), core, props["thread-id"], socket, props.get("node-id", 0))
