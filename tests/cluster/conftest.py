"""Several nodes as files: captured machines, each a root of its own, that share one /etc/pve."""

import json
import os
import time
from pathlib import Path

import pytest

from pxsched import cli
from pxsched.cluster import members, publication, publish
from pxsched.host import cpulist
from pxsched.ledger import file as ledgers
from pxsched.node import claims, others, sighting
from pxsched.node.sighting import Node
from pxsched.root import Root

SHARED = ("nodes", ".members", "ha", "mapping", "virtual-guest", "storage.cfg", "pxsched.toml")
OURS = "hookscript: local:snippets/pxsched\n"


class Cluster:
    """machines: the root of a captured machine for each node, in the order of their names pve1, pve2..."""

    def __init__(self, base: Path, machines: list[Path]) -> None:
        self.base, self.pve = base, base / "pve"
        self.names = [f"pve{number}" for number in range(1, len(machines) + 1)]
        for name, machine in zip(self.names, machines, strict=True):
            (self.pve / "nodes" / name / "qemu-server").mkdir(parents=True)
            root = base / name
            (root / "etc/pve").mkdir(parents=True)
            (root / "proc").mkdir()
            os.symlink(machine / "sys", root / "sys")
            for entry in (machine / "proc").iterdir() if (machine / "proc").is_dir() else ():
                os.symlink(entry, root / "proc" / entry.name)
            os.symlink(f"nodes/{name}", root / "etc/pve/local")
        self.corosync()
        for file in SHARED:
            for name in self.names:
                os.symlink(self.pve / file, base / name / "etc/pve" / file)

    def root(self, name: str) -> Root:
        return Root(str(self.base / name))

    def node(self, name: str) -> Node:
        return sighting.open_node(self.root(name), {})

    def corosync(self, *, quorate: int = 1, offline: tuple[str, ...] = ()) -> None:
        nodes = {name: {"id": 1, "online": int(name not in offline)} for name in self.names}
        self.put(".members", json.dumps({"cluster": {"quorate": quorate}, "nodelist": nodes}))

    def put(self, relative: str, text: str) -> None:
        path = self.pve / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def settings(self, text: str) -> None:
        self.put("pxsched.toml", text)

    def vm(self, name: str, vmid: int, text: str = "", *, running: bool = False) -> None:
        """A VM that is opted in. running: with a process and a place, as its node would give it."""
        self.put(f"nodes/{name}/qemu-server/{vmid}.conf", f"memory: 1024\n{OURS}{text}")
        if running:
            self._process(name, vmid)
            self._place(name, vmid)

    def forget(self, name: str, vmid: int) -> None:
        """As the hook does when the VM has stopped."""
        root = self.root(name)
        with ledgers.locked(root) as ledger:
            del ledger.claims[vmid]
            ledgers.save(root, ledger)

    def move(self, vmid: int, source: str, target: str) -> None:
        """As Proxmox does: the configuration is renamed."""
        file = f"qemu-server/{vmid}.conf"
        os.rename(self.pve / "nodes" / source / file, self.pve / "nodes" / target / file)

    def _process(self, name: str, vmid: int) -> None:
        base, pid = self.base / name, vmid * 100
        files = {
            f"run/qemu-server/{vmid}.pid": str(pid),
            f"proc/{pid}/cmdline": f"kvm\0-pidfile\0/var/run/qemu-server/{vmid}.pid\0",
        }
        for directory in (f"proc/{pid}", f"proc/{pid}/task/{pid}"):
            numbers = " ".join(["1"] * 18)
            everywhere = cpulist.format(self.node(name).topology.online)
            files |= {
                f"{directory}/stat": f"{pid} (kvm) S {numbers} 100 0 0",
                f"{directory}/status": f"Name:\tkvm\nCpus_allowed_list:\t{everywhere}",
                f"{directory}/comm": "kvm",
            }
        for relative, text in files.items():
            path = base / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def _place(self, name: str, vmid: int) -> None:
        node = self.node(name)
        with ledgers.locked(node.root) as ledger:
            claims.update(node, ledger, [sighting.sight(node.root, vmid, hooked=True)])
            ledgers.save(node.root, ledger)

    def publish(self, *names: str, at_s: float | None = None) -> None:
        """What the timers of these nodes (or all) write."""
        for name in names or self.names:
            node = self.node(name)
            ledger = ledgers.peek(node.root)
            document = publication.document(
                publish.look(node, ledger, others.known(node.root, {*ledger.claims}))
            )
            document["measured"]["time"] = at_s or time.time()
            self.put(f"nodes/{name}/{publish.NAME}", json.dumps(document))

    def looked(self, name: str = "pve1") -> dict[str, members.Member]:
        return {member.name: member for member in members.look(self.node(name))}


@pytest.fixture
def epyc(machines: Path) -> Path:
    """A real machine: one socket, 48 cores with siblings, an L3 for each three of them."""
    return machines / "pepc-milan0" / "root"


@pytest.fixture
def pair(tmp_path: Path, epyc: Path) -> Cluster:
    return Cluster(tmp_path, [epyc, epyc])


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """`pxsched ...` on one node of a cluster: exit code, standard output and error."""

    def call(cluster: Cluster, name: str, *words: str) -> tuple[int, str, str]:
        code = cli.main(["--root", str(cluster.base / name), *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
