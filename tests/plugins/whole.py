"""A machine on which every kind of knob can be turned, and passes over it that can be killed.

Generated are /sys, /proc/irq and /proc/interrupts; real are the VMs' processes and threads, their affinities
and scheduling, the sockets of QEMU and irqbalance, and every pass: a process of its own.
"""

import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

from pxsched import guest, hook, host, knobs, placement, plugins, tick
from pxsched.balance import memory
from pxsched.balance.balloon import BalloonTarget, Outcome, State
from pxsched.guest import balloon
from pxsched.host import cpulist, irqbalance
from pxsched.knobs import file as knob_file
from pxsched.knobs.knob import Gone
from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Entry
from pxsched.node import settle
from pxsched.node.turns import Turn
from pxsched.root import Root
from tests import killing

from .conftest import ALL, CPUS, PER_NODE, Systemd, Tree

# What a pass would load, it finds here: a process of its own is quick to make then.
for package in guest, host, knobs, placement, plugins:
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)

HERE = Path(__file__).parent
EVERYTHING, MODEST, STRANGER = 100, 101, 200
VECTORS, ADMINS = (60, 61), 40
DEVICE = "0000:17:02.0"
TOLD_MIB = 512
STAYING = ("balance", "others", "settings", "passes", "refusals", "runs")
OURS = "hookscript: local:snippets/pxsched\n"
CONFIGURATIONS = {
    EVERYTHING: f"cores: 1\nmemory: 2048\nnet0: virtio=BC:24:11:00:00:01,queues=2\nhostpci0: {DEVICE}\n",
    MODEST: "cores: 1\nmemory: 2048\nballoon: 256\nshares: 0\naffinity: 0\n",
    STRANGER: "cores: 1\nmemory: 2048\n",  # never opted in, and confined
}
SETTINGS = """
[node]
housekeeping = "0"
isolation = "{isolation}"
others = "confine"
device_interrupts = true
balance_cpu = false

[vm.100]
class = "dedicated"
cpus = "1"
memory = "strict"
governor = "performance"
energy = "performance"
fifo = 5
halt_poll_ns = 1000
resume_latency_us = 0

[vm.101]
emulator = "vm"
vhost = "vm"
governor = "powersave"
resume_latency_us = 30
"""
_REAL_IRQBALANCE = r"""
mount -t tmpfs tmpfs /run
mkdir /run/irqbalance
mount --bind "$1/run/irqbalance" /run/irqbalance
mount --bind "$1/proc/irq" /proc/irq
mount --bind "$1/proc/interrupts" /proc/interrupts
mount --bind "$1/sys/bus/pci/devices" /sys/bus/pci/devices
exec irqbalance --foreground --interval=1 --banirq="$2"
"""


class Whole:
    """The machine with both VMs running, and irqbalance. real: Debian's own daemon."""

    def __init__(self, tree: Tree, fake_systemd: Systemd, isolation: str, *, real: bool = False) -> None:
        self.tree, self.base, self._systemd, self._real = tree, tree.base, fake_systemd, real
        self._children: list[subprocess.Popen[str]] = []
        self.vms: dict[int, subprocess.Popen[str]] = {}
        self.turned: set[str] = set()  # kinds of knobs, by passes that came to their end
        self._sys(tree)
        self._proc(tree)
        self._etc(tree, isolation)
        systemds = "systemd/system", "systemd/system.control", "systemd/transient"
        for name in "pxsched", "qemu-server", "irqbalance", *systemds:
            (self.base / "run" / name).mkdir(parents=True)
        for vmid in CONFIGURATIONS:
            self.start(vmid)
        self.irqbalance = self._irqbalance()

    # What there is

    def _sys(self, tree: Tree) -> None:
        tree.put("sys/devices/system/cpu/online", ALL)
        tree.put("sys/devices/system/cpu/possible", ALL)
        for cpu in range(CPUS):
            tree.put(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", str(cpu))
        for node in range(CPUS // PER_NODE):
            first = node * PER_NODE
            tree.put(f"sys/devices/system/node/node{node}/cpulist", f"{first}-{first + PER_NODE - 1}")
        tree.put("sys/fs/cgroup/qemu.slice/cpuset.cpus.exclusive", "")
        for queue in "rx-0/rps", "rx-1/rps", "tx-0/xps", "tx-1/xps":
            tree.put(f"sys/class/net/tap100i0/queues/{queue}_cpus", "00")
        tree.put("sys/class/net/tap100i0/ifindex", "17")

    def _proc(self, tree: Tree) -> None:
        """Processes are the running kernel's; `process` and `_child` add those that matter."""
        for name in "meminfo", "sys":
            (self.base / "proc").mkdir(exist_ok=True)
            (self.base / "proc" / name).symlink_to(f"/proc/{name}")
        tree.put("proc/irq/default_smp_affinity", "ff")
        vectors = [(number, f"vfio-msix[{index}]({DEVICE})") for index, number in enumerate(VECTORS)]
        rows = ["            CPU0       CPU1       "]
        for number, name in ((ADMINS, "eth0-rx-0"), (41, "nvme0q1"), *vectors):
            device = DEVICE if number in VECTORS else "0000:00:03.0"
            tree.put(f"proc/irq/{number}/smp_affinity_list", "1" if number == 41 else ALL)
            tree.put(f"proc/irq/{number}/smp_affinity", "ff")  # irqbalance's
            (self.base / f"proc/irq/{number}/{name}").mkdir()
            tree.put(f"sys/bus/pci/devices/{device}/msi_irqs/{number}", "msix")
            tree.put(f"sys/bus/pci/devices/{device}/irq", "0")
            tree.put(f"sys/bus/pci/devices/{device}/numa_node", "0")
            tree.put(f"sys/bus/pci/devices/{device}/class", "0x020000")
            rows.append(f" {number}:     1000     1000  PCI-MSIX-{device}  0-edge   {name}")
        tree.put("proc/interrupts", "\n".join(rows))

    def _etc(self, tree: Tree, isolation: str) -> None:
        tree.put("etc/pxsched/pxsched.toml", SETTINGS.format(isolation=isolation))
        (self.base / "etc/pve").mkdir()
        (self.base / "etc/pve/local").symlink_to("nodes/here")
        self.opt_in(EVERYTHING, MODEST)
        self.opt_out(STRANGER)

    def opt_in(self, *vmids: int) -> None:
        for vmid in vmids:
            self.tree.put(f"etc/pve/nodes/here/qemu-server/{vmid}.conf", CONFIGURATIONS[vmid] + OURS)

    def opt_out(self, *vmids: int) -> None:
        for vmid in vmids:
            self.tree.put(f"etc/pve/nodes/here/qemu-server/{vmid}.conf", CONFIGURATIONS[vmid])

    def start(self, vmid: int) -> None:
        """What Proxmox, systemd and QEMU do."""
        scope = self.tree.scope(vmid)
        self.tree.put(f"{scope}/cpuset.cpus.partition", "member")
        self.tree.put(f"{scope}/cpuset.cpus.exclusive", "")
        if vmid == MODEST:  # some of its memory lies on the node where it does not belong
            self.tree.put(f"{scope}/memory.numa_stat", f"anon N0={1 << 30} N1={1 << 30}")
        arguments = ["-id", str(vmid), "-pidfile", f"/var/run/qemu-server/{vmid}.pid"]
        arguments += ["-device", f"vfio-pci,host={DEVICE}"] if vmid == EVERYTHING else []
        socket = self.base / f"run/qemu-server/{vmid}.qmp"
        confined = ["taskset", "--cpu-list", "0"] if vmid == MODEST else []  # as its `affinity` says
        script = [sys.executable, "-IS", HERE.parent / "stand_in_qemu.py", socket, "1", "obeys", '""']
        vm = self._spawn([*confined, *script, *arguments])
        for tid in os.listdir(f"/proc/{vm.pid}/task"):
            self._process(int(tid))
        self.tree.put(f"run/qemu-server/{vmid}.pid", str(vm.pid))
        self.vms[vmid] = vm

    def configure(self, name: str, value: str) -> None:
        """Adds a setting of the node's."""
        text = self.tree.get("etc/pxsched/pxsched.toml")
        self.tree.put("etc/pxsched/pxsched.toml", text.replace("[node]\n", f"[node]\n{name} = {value}\n"))

    def end(self, vmid: int) -> None:
        """What they do at the end; systemd takes the scope's drop-ins of its own with it."""
        self._stop(self.vms.pop(vmid))
        for kind in "pid", "qmp":
            os.unlink(self.base / f"run/qemu-server/{vmid}.{kind}")
        shutil.rmtree(self.base / f"sys/fs/cgroup/qemu.slice/{vmid}.scope")
        shutil.rmtree(self.base / f"run/systemd/transient/{vmid}.scope.d", ignore_errors=True)

    def close(self) -> None:
        for child in list(self._children):
            self._stop(child)

    def _irqbalance(self) -> "subprocess.Popen[str]":
        if not self._real:
            script = [sys.executable, "-IS", HERE / "stand_in_irqbalance.py", self.base / "run/irqbalance"]
            daemon = self._spawn([*script, str(ADMINS)])
            self._process(daemon.pid)
            return daemon
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _REAL_IRQBALANCE, "enter"]
        daemon = self._spawn([*enter, self.base, str(ADMINS)], says="")
        self._process(daemon.pid)
        deadline = time.monotonic() + 10
        while irqbalance.look(self.root) is None:
            assert time.monotonic() < deadline and daemon.poll() is None, "irqbalance does not run"
            time.sleep(0.02)
        return daemon

    def _spawn(self, command: list[object], *, says: str = "ready") -> "subprocess.Popen[str]":
        environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        child = subprocess.Popen(
            [*map(str, command)], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        self._children.append(child)
        assert child.stdout is not None
        assert not says or child.stdout.readline().strip() == says
        return child

    def _stop(self, child: "subprocess.Popen[str]") -> None:
        child.kill()
        child.communicate()
        self._children.remove(child)

    def _process(self, pid: int) -> None:
        link = self.base / f"proc/{pid}"
        link.unlink(missing_ok=True)
        link.symlink_to(f"/proc/{pid}")

    # What is done

    def tick(self, fatal: int | None = None) -> bool:
        """The timer's pass; says whether it was killed."""
        return self._child(_tick, fatal)

    def restore(self, fatal: int | None = None) -> bool:
        """`restore --all`."""
        return self._child(_restore, fatal)

    def hook(self, vmid: int, phase: str, fatal: int | None = None) -> bool:
        return self._child(lambda root: _hook(root, vmid, phase), fatal)

    def _child(self, work: Callable[[Root], Iterable[Turn]], fatal: int | None) -> bool:
        """Does the work in a process that is killed before its write number `fatal`."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                self._enter()
                knob_file.write = _at_once
                if fatal is not None:
                    _die_at(fatal, self._systemd, conversing=not self._real)
                turned = work(Root(str(self.base)))
                os.write(theirs, json.dumps([turn.key.partition(":")[0] for turn in turned]).encode())
                code = 0
            except BaseException:  # noqa: BLE001 - the last words of a process
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(theirs)
        with os.fdopen(ours) as stream:
            said = stream.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"the work failed by itself: {status}"
        self.turned |= set(json.loads(said or "[]"))
        return status != 0

    def _enter(self) -> None:
        """Makes the generated /proc that of this process."""
        link = self.base / "proc/self"
        link.unlink(missing_ok=True)
        link.symlink_to(str(os.getpid()))
        self._process(os.getpid())

    # What is seen

    @property
    def root(self) -> Root:
        self._enter()
        return Root(str(self.base))

    @property
    def journal(self) -> dict[str, Entry]:
        return ledgers.peek(self.root).journal

    def state(self) -> dict[str, object]:
        """Every file, every thread, and what QEMU and irqbalance were told."""
        return {**self._files(), **self._threads(), **self._told()}

    def _files(self) -> dict[str, object]:
        ignored = [self.base / name for name in ("run/pxsched", "run/qemu-server", "run/irqbalance", "etc")]
        found: dict[str, object] = {}
        for directory, names, files in os.walk(self.base):
            names[:] = [name for name in names if Path(directory, name) not in ignored]
            found[os.path.relpath(directory, self.base)] = "a directory"
            for name in files:
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink() and name != "smp_affinity":
                    relative = str(path.relative_to(self.base))
                    found[relative] = oct(path.stat().st_mode), path.read_bytes().rstrip(b"\n")
        return found

    def _threads(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for vmid, vm in self.vms.items():
            for tid in map(int, os.listdir(f"/proc/{vm.pid}/task")):
                name = Path(f"/proc/{tid}/comm").read_text().strip().replace(str(vm.pid), "PID")
                policy, priority = os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority
                mask = cpulist.format(os.sched_getaffinity(tid))
                found[f"VM {vmid}: {name}"] = mask, policy, priority
        return found

    def _told(self) -> dict[str, object]:
        root = self.root
        sizes = {f"balloon {vmid}": balloon.actual_mib(root, vmid, patience_s=5) for vmid in self.vms}
        irqbalance._asked_cpus.clear()  # it is asked by a process that knows of nothing
        daemon = irqbalance.find(root)
        assert daemon is not None
        setup = irqbalance.setup(root, daemon)
        cpus = {} if self._real else {"irqbalance's CPUs": setup.cpus}
        return {**sizes, **cpus, "irqbalance's bans": sorted(setup.irqs)}

    def irqbalance_cpus(self) -> str:
        """Which CPUs it keeps off; the real one says so after its next scan."""
        time.sleep(2.2 if self._real else 0)
        irqbalance._asked_cpus.clear()
        found = irqbalance.look(self.root)
        assert found is not None and found.setup is not None
        return cpulist.format(cpulist.parse_mask(found.setup.cpus))

    def masks(self, vmid: int) -> set[str]:
        """Where the VM's threads may run."""
        tids = map(int, os.listdir(f"/proc/{self.vms[vmid].pid}/task"))
        return {cpulist.format(os.sched_getaffinity(tid)) for tid in tids}

    def held(self) -> list[str]:
        """The files that say what is ours; locks, settings and what was measured stay behind, and so may what
        a killed write had begun, which nobody reads and the next one replaces.
        """
        names = sorted(os.listdir(self.base / "run/pxsched"))
        ours = [name for name in names if not name.startswith(STAYING)]
        return [name for name in ours if not name.endswith(("lock", "new"))]


def _at_once(root: Root, path: str, value: str) -> None:
    """As the kernel takes a value: no open empties the file, and who is killed meanwhile leaves it whole."""
    real = root.path(path)
    if not os.path.exists(real):
        raise Gone(path)
    new = f"{root.base}.{threading.get_native_id()}"
    Path(new).write_text(f"{value}\n")
    shutil.copymode(real, new)
    os.rename(new, real)


def _tick(root: Root) -> list[Turn]:
    memory.targets = _coordinated
    done = tick.tick(root, {})
    assert done.settled is not None
    reports = [done.settled.report, *([done.balanced.report] if done.balanced else [])]
    failed = [line for report in reports for line in report.failed]
    assert failed == [], failed
    assert done.settled.changes.refused == {}
    return [turn for report in reports for turn in report.turned]


def _restore(root: Root) -> list[Turn]:
    report = settle.restore_all(root)
    assert report.failed == []
    return report.turned


def _hook(root: Root, vmid: int, phase: str) -> list[Turn]:
    assert hook.main([str(vmid), phase], {"PXSCHED_ROOT": root.base}) == 0
    return []


def _coordinated(*_: object) -> Outcome:
    """What the memory coordinator says of guests that have more than they need."""
    return Outcome((BalloonTarget(MODEST, TOLD_MIB, "so says the test"),), {}, State(), {})


def _die_at(number: int, fake_systemd: Systemd, *, conversing: bool) -> None:
    """Kills this process before its write with this number; systemd is another process, which lives on.

    conversing: also in the middle of a conversation with irqbalance, which the real one does not survive.
    """
    events = {*killing.WRITES, "systemd.call", *(["socket.sendmsg"] if conversing else [])}
    count = killing.die_at(number, events, pauses=lambda: fake_systemd.works)

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            count()
            return function(*arguments)

        return call

    os.sched_setaffinity = counted(os.sched_setaffinity)
    os.sched_setscheduler = counted(os.sched_setscheduler)
    if conversing:
        irqbalance._receive = counted(irqbalance._receive)
