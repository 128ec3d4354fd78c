"""Generated machines: a directory with the sysfs and /etc/pve files that matter here."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pxsched.host import cpulist
from pxsched.root import Root

# A 128 GiB node as the kernel counts it, after what firmware and kernel keep: 125.6 GiB.
NODE_KIB = 131_709_440

Machine = Callable[..., Root]


def _write(base: Path, relative: str, text: str) -> None:
    path = base / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_machine(
    base: Path, nodes: Sequence[tuple[str, int]], *, siblings: int = 2, l3_cores: int = 8, name: str = "pve1"
) -> Root:
    """nodes: CPU list and memory in KiB of each NUMA node; the CPUs of a node are its cores' first threads,
    then their second ones.
    """
    cpus = sorted(cpu for text, _ in nodes for cpu in cpulist.parse(text))
    _write(base, "sys/devices/system/cpu/online", cpulist.format(cpus) + "\n")
    for number, (text, memory_kib) in enumerate(nodes):
        members = sorted(cpulist.parse(text))
        directory = f"sys/devices/system/node/node{number}"
        _write(base, f"{directory}/cpulist", text + "\n")
        _write(base, f"{directory}/meminfo", f"Node {number} MemTotal:       {memory_kib} kB\n")
        distances = ["10" if other == number else "21" for other in range(len(nodes))]
        _write(base, f"{directory}/distance", " ".join(distances) + "\n")
        cores = len(members) // siblings
        for position, cpu in enumerate(members):
            core = [members[position % cores + thread * cores] for thread in range(siblings)]
            first = position % cores // l3_cores * l3_cores
            shared = [
                members[other + thread * cores]
                for other in range(first, min(first + l3_cores, cores))
                for thread in range(siblings)
            ]
            directory = f"sys/devices/system/cpu/cpu{cpu}"
            _write(base, f"{directory}/topology/core_cpus_list", cpulist.format(core))
            _write(base, f"{directory}/topology/physical_package_id", "0")
            _write(base, f"{directory}/cache/index3/level", "3")
            _write(base, f"{directory}/cache/index3/shared_cpu_list", cpulist.format(shared))
    (base / f"etc/pve/nodes/{name}/qemu-server").mkdir(parents=True)
    os.symlink(f"nodes/{name}", base / "etc/pve/local")
    return Root(str(base))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Makes a machine below the test's own directory."""

    def make(nodes: Sequence[tuple[str, int]], **shape: int) -> Root:
        return make_machine(tmp_path / "root", nodes, **shape)

    return make


@pytest.fixture
def epyc(machine: Machine) -> Root:
    """The documented example: 4 NUMA nodes of 8 cores with two threads each."""
    return machine([(f"{8 * n}-{8 * n + 7},{8 * n + 32}-{8 * n + 39}", NODE_KIB) for n in range(4)])


@pytest.fixture
def run_karpenter(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`pxsched karpenter WORD...` on a root; returns what it prints."""
    import argparse

    from pxsched.karpenter import commands

    def run(root: Root, *words: str) -> str:
        parser = argparse.ArgumentParser()
        commands.register(parser.add_subparsers(required=True))
        args = parser.parse_args(["karpenter", *words])
        args.root = root
        assert args.run(args) == 0
        return capsys.readouterr().out

    return run
