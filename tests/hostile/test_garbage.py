"""Ten thousand damaged contents of every file that is stored or that others write: each is read or refused,
in no time and with little memory. (Ledger, balance.json, settings, configurations, QMP, CPU lists, sysfs and
what the nodes tell each other have tests of their own beside their modules.)
"""

import json
import random
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest

from pxsched import state
from pxsched.chain import entry as chain_entry
from pxsched.chain import files as chain
from pxsched.chain.entry import Entry
from pxsched.commands import requests
from pxsched.errors import UserError
from pxsched.guest import config, identity, passthrough, process, schedstat
from pxsched.guest.identity import Identity
from pxsched.guest.process import Process
from pxsched.host import cgroup, cputime, frequency, interrupts, memory, mounts, pressure, processor
from pxsched.karpenter import keep
from pxsched.knobs import isolation
from pxsched.knobs.scope import DropIn
from pxsched.ledger import file as ledgers
from pxsched.monitor import passes, refusals, runs
from pxsched.node import observing, others, proofs, quiet, trial
from pxsched.node.figures import Reading, Turns
from pxsched.node.others import Other, Seen
from pxsched.proof import result
from pxsched.proof.block import Block
from pxsched.proxmox import api, cluster, failures, storage
from pxsched.root import Root
from pxsched.settings import default_file
from pxsched.setup import manifest
from pxsched.shape import options as shape
from pxsched.shape.smp import Unreadable
from pxsched.shaping import keep as shapes
from pxsched.shaping import record
from pxsched.shaping.record import Record
from pxsched.value import plain

ROOMY_KIB, LONGEST_S = 100 << 10, 1.0
ODD = [
    b"",
    b"\0",
    b"\n",
    b" ",
    b":",
    b",",
    b"=",
    b"-",
    b"-1",
    b"9" * 30,
    b"1e999",
    b"Infinity",
    b"null",
    b"[",
    b"]",
    b"}",
    b'"',
    b'"x"',
    b"\xff",
    "\u0663".encode(),
    "\u2028".encode(),
    b"%",
    b"../",
    b"{}",
    b"[]",
    b"0-9999999",
]
OWNER = Identity("01234567-89ab-cdef-0123-456789abcdef", "", "17")
OPTIONS = {"smbios1": f"uuid={OWNER.uuid}", "meta": "ctime=17"}
BOOT = {"boot_id": ""}


class Case(NamedTuple):
    """A file below the root, what it says when it is whole, and who reads it."""

    path: str
    whole: bytes
    read: Callable[[Root], object]


def text(document: object) -> bytes:
    return json.dumps(document, default=dict).encode()


def shaped() -> bytes:
    before = {"args": "-device a", "sockets": None}
    wrote = ({"args": "-device a -smp threads=2", "sockets": "2"},)
    return text({"schema": 1, **plain(Record(100, OWNER, before, wrote))})


def of_text(path: str, whole: str, read: Callable[[str], object]) -> Case:
    """Of a parser of text."""
    return Case(
        path, whole.encode(), lambda root: read((root.read_bytes(path) or b"").decode("utf-8", "replace"))
    )


QEMU = 4711
SEEN = Seen(
    5, (Other(300, None, frozenset((0, 1)), 0.5, {0: 512}), Other(301, Process(9, 7), frozenset((2,))))
)
CONFIG = (
    "args: -smp 2,sockets=1,cores=1,threads=2 -cpu host,vendor=x\ncores: 2\nsockets: 1\nvcpus: 2\n"
    "numa: 1\nnuma0: cpus=0-1,memory=512\n"
    "memory: 512\ncpu: host,flags=+pcid\nhotplug: cpu\nhugepages: 2\nsmbios1: uuid=x\nmeta: ctime=1\n"
)
READING = Reading(5, Turns(1, 2, 3, 4), {}, 9, {"numa_other": 1}, None)
BLOCKS = tuple(
    Block(number // 4, ("stock", "home", "home", "stock")[number % 4], 1e9, 12.0, {"waiting": 1.0 + number})
    for number in range(32)
)
PROOF = result.Result(
    100, Identity(), ("stock", "home"), {"stock": "", "home": ""}, {"stock": {"vcpu": False}, "home": {}},
    1e9, 12.0, 3.0, BLOCKS,
)  # fmt: skip
INTERRUPTS = """\
       CPU0 CPU1
 60:  1 2  PCI-MSIX-0000:17:02.0  0-edge  vfio-msix[0](0000:17:02.0)
NMI: 1 2 Non-maskable interrupts
"""
STAT = f"{QEMU} (kvm) S 1 {' '.join(map(str, range(2, 50)))}"
CASES = {
    "others": Case(
        others.FILE,
        text({**BOOT, **others.document(SEEN), "counters": {"used_ns": {"300": 5}, "idle_ns": {"0": 9}}}),
        lambda root: (others.load(root), observing._load(root)),
    ),
    "passes": Case(
        passes.FILE, text([7, 1.5, 5.0, 0.2, {"100": 1}, {"101": 2}, {"vcpu": 2}, 1, [101]]), passes.load
    ),
    "refusals": Case(refusals.FILE, b'{"101": 3}', refusals.load),
    "run times": Case(
        runs.FILE,
        text({"100": [7, [5, 6], {"11": [1, 2]}]}),
        lambda root: state.load(root, runs.FILE, runs._from_json, set_aside=False),
    ),
    "failures": Case(
        shapes.FAILED,
        text({"vms": {"100": {"why": "x", "digest": "y", "tries": 1, "again_s": 5}}}),
        lambda root: failures.load(root, shapes.FAILED),
    ),
    "a trial": Case(
        trial.FILE,
        text({"vmid": 100, "way": "dedicated", "process": [7, 5], "until_ns": ledgers.now_ns() + (900 << 30),
              "owner": None, "overlay": {"vcpu": False, "emulator": "off"},
              "placement": ["dedicated", "4;5", "0", "0", ["why"]]}),
        trial.load,
    ),
    "a quiet proof": Case(
        quiet.FILE,
        text(quiet.State(100, Process(7, 5), 3, ("stock", "home"), 5.0, READING, 6.0).to_json()),
        lambda root: state.load(root, quiet.FILE, quiet.State.from_json, set_aside=False),
    ),
    "a proof": Case(
        f"{proofs.DIR}/100.json",
        text(PROOF.to_json()),
        lambda root: proofs.load(root, 100),
    ),
    "what proofs say": Case(
        proofs.SUMMARY, text({"proofs": [plain(result.brief(PROOF))]}), proofs.briefs
    ),
    "Karpenter's VM": Case(keep.RECORD, b'{"vmid": 100, "said": ["x"]}', keep._record),
    "a chained script": Case(
        chain.RECORDS.path_of(100),
        chain_entry.dump(Entry(100, OWNER, "local:snippets/a.sh", "1000", "256 128")),
        lambda root: (chain.find(root, 100, OPTIONS), chain.damaged(root), chain.shares(root, [100])),
    ),
    "chained scripts of earlier": Case(
        chain.OLD_FILE,
        b'{"hookscripts": {"100": "x"}, "shares": {"100": "5"}}',
        lambda root: (chain.find(root, 100, OPTIONS), chain.damaged(root)),
    ),
    "a shape": Case(
        record.RECORDS.path_of(100),
        shaped(),
        lambda root: record.undo(record.read(root, 100, OPTIONS) or Record(1, OWNER, {}, ()), {"args": "x"}),
    ),
    "the manifest": Case(
        manifest.MANIFEST,
        text(
            {
                "files": {"usr/bin/x": ["a" * 64]},
                "directories": ["usr"],
                "prefix": "opt/pxsched",
                "foreign": ["etc/x"],
            }
        ),
        manifest.load,
    ),
    "the cluster's members": Case(
        "etc/pve/.members",
        text({"nodename": "a", "cluster": {"quorate": 1}, "nodelist": {"a": {"online": 1}}}),
        cluster.membership,
    ),
    "an isolated slice's original": of_text(
        "x", isolation.Original("0-3", "0-7", True, ()).dumps(), isolation.loads
    ),
    "a drop-in": Case(
        "run/systemd/system/100.scope.d/pxsched.conf",
        b"[Scope]\nAllowedCPUs=0-3\nAllowedMemoryNodes=0\n",
        DropIn(100).read,
    ),
    "pvesh's answer": of_text("x", 'task said\n{"data": [1, {"a": null}]}', api._json_tail),
    "requests": of_text(
        "x",
        '{"op": "start", "vmid": 1, "vcpus": 2, "memory_mib": 64, "affinity": "0-3"}',
        lambda line: list(requests.parse(1, line)),
    ),
    "storages": Case(
        "etc/pve/storage.cfg",
        b"dir: local\n\tpath /var/lib/vz\n\tcontent snippets\n\nnfs: nas\n",
        lambda root: (storage.sections(root), storage.script_path(root, "local:snippets/x")),
    ),
    "corosync": Case("etc/pve/corosync.conf", b"totem {\n  cluster_name: x\n}\n", cluster.cluster_name),
    "HA": Case("etc/pve/ha/resources.cfg", b"vm: 100\n\tstate started\n", cluster.ha_resources),
    "the default file": of_text(
        "x",
        'CPU_GOVERNOR_BUSY="performance"\nPROXMOX_FEATURE_FLAGS=karpenter\nEXTRA_ARGS=-v 3\n',
        lambda content: default_file.read(content, {}),
    ),
    "mounts": Case(
        "proc/mounts",
        b"pmxcfs /etc/pve fuse rw 0 0\nx /a\\040b ext4 rw 0 0\n",
        lambda root: mounts.is_mounted(root, "etc/pve"),
    ),
    "interrupts": of_text("x", INTERRUPTS, interrupts.parse),
    "the host's memory": Case(
        "proc/meminfo",
        b"MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
        lambda root: (pressure.host_memory(root), memory.available_mib(root)),
    ),
    "pressure": Case(
        "proc/pressure/memory",
        b"some avg10=0.10 avg60=0.00\nfull avg10=0.05 avg60=0 total=5\n",
        lambda root: pressure.average(root.read("proc/pressure/memory"), "full"),
    ),
    "ZFS's cache": Case(
        "proc/spl/kstat/zfs/arcstats", b"size 4 1073741824\nc_min 4 1024\n", pressure._arc_shrinkable_mib
    ),
    "free blocks": Case(
        "proc/buddyinfo", b"Node 0, zone   Normal 1 2 3 4 5 6 7 8 9 10 11\n", memory._contiguous_mib
    ),
    "memory maps": of_text(
        "x", "7f00 default anon=512 dirty=5 N0=256 N1=256 kernelpagesize_kB=4\n", memory.numa_maps
    ),
    "CPU time": Case("proc/stat", b"cpu  1 2 3 4 5\ncpu0 1 2 3 4 5 6 7 8 9 10\n", cputime.idle_ns),
    "the processor": Case(
        "proc/cpuinfo",
        b"processor : 0\nvendor_id : AuthenticAMD\ncpu family : 25\nflags : a b\n",
        processor.read,
    ),
    "a group's memory": Case(
        "sys/fs/cgroup/g/memory.numa_stat",
        b"anon N0=4096 N1=8192\nfile N0=1\n",
        lambda root: cgroup.memory_bytes(root, "g"),
    ),
    "a group's time": Case(
        "sys/fs/cgroup/g/cpu.stat", b"usage_usec 5\nuser_usec 3\n", lambda root: cgroup.used_ns(root, "g")
    ),
    "a group's CPUs": Case(
        "sys/fs/cgroup/g/cpuset.cpus.effective",
        b"0-3\n",
        lambda root: (cgroup.effective_cpus(root, "g"), cgroup.stated_cpus(root, "g")),
    ),
    "a group's threads": Case(
        "sys/fs/cgroup/g/cgroup.threads", b"1\n2\n", lambda root: list(cgroup.tids(root, "g"))
    ),
    "a process": Case(
        f"proc/{QEMU}/stat",
        STAT.encode(),
        lambda root: (
            process.identify(root, QEMU),
            process.parent(root, QEMU),
            schedstat.used_ns(root, 100, Process(QEMU, 5)),
        ),
    ),
    "a process's mask": Case(
        f"proc/{QEMU}/status",
        b"Name:\tkvm\nCpus_allowed_list:\t0-3\n",
        lambda root: (process.allowed(root, QEMU), process.mask(root, QEMU)),
    ),
    "a process's size": Case(
        f"proc/{QEMU}/status",
        b"VmRSS:\t    3072 kB\nRssAnon:\t    2048 kB\nRssShmem:\t       0 kB\n",
        partial(schedstat.resident_mib, pid=QEMU),
    ),
    "a pid file": Case("run/qemu-server/100.pid", f"{QEMU}\n".encode(), lambda root: process.find(root, 100)),
    "a command line": Case(
        f"proc/{QEMU}/cmdline",
        b'kvm\0-device\0vfio-pci,host=0000:17:02.0\0-device\0{"driver":"vfio-pci","host":"0000:17:02.0"}\0',
        lambda root: passthrough._of_command_line(root, QEMU),
    ),
    "mapped devices": of_text(
        "x",
        "gpu\n\tmap id=10de:1,node=a,path=0000:17:02.0\n",
        lambda content: passthrough.mapped(content, None, "a"),
    ),
    "reserved devices": Case(passthrough.RESERVATIONS, b"0000:17:02.0 100 pid:5\n", passthrough.reservations),
    "frequencies": Case(
        "sys/devices/system/cpu/cpufreq/policy0/related_cpus",
        b"0 1\n",
        lambda root: frequency.read(root, (0, 1)),
    ),
    "a VM that is shaped": of_text(
        "x",
        CONFIG,
        lambda content: (
            shape.read(config.parse(content).options),
            identity.of(config.parse(content).options),
        ),
    ),
}


def damaged(chance: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(data) + 1)
        data[place : place + chance.randrange(5)] = chance.choice(ODD)
    return bytes(data if chance.random() < 0.95 else data[: chance.randrange(len(data) + 1)])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_garbage_is_read_or_refused(name, count, tmp_path, capfd):
    case, root, chance = CASES[name], Root(str(tmp_path)), random.Random(name)
    path = tmp_path / case.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(case.whole)
    if case.path.startswith("run/systemd"):
        path.chmod(0o644)
    case.read(root)  # what is whole is read
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    longest_s = 0.0
    for _ in range(count):
        path.write_bytes(content := damaged(chance, case.whole))
        begin = time.thread_time()
        try:
            case.read(root)
        except (UserError, ledgers.Damaged, Unreadable):
            pass
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} at {content[:300]!r}") from error
        longest_s = max(longest_s, time.thread_time() - begin)
    capfd.readouterr()
    assert longest_s < LONGEST_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < ROOMY_KIB
