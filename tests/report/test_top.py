"""`pxsched top`: what the picture shows, at any size, and that it can be driven from a terminal."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="python3-rich is not installed")

from rich.console import Console

from pxsched.commands import watching
from pxsched.commands.watching import DOWN, ENTER, LEAVE, UP
from pxsched.guest.config import Machine
from pxsched.guest.process import Process
from pxsched.host.topology import L3, Cpu, Node, Package, Topology
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.journal import Entry
from pxsched.node.sighting import Sighting
from pxsched.placement.request import Placement, VmClass
from pxsched.report import frame as frames
from pxsched.report import screen
from pxsched.report.frame import Frame, Row
from pxsched.root import Root

CHECKOUT = Path(__file__).resolve().parents[2]


def machine(cpus: int, *, l3: int = 16) -> Topology:
    """Siblings side by side, L3 groups of so many CPUs, two nodes where there is more than one group."""
    groups = [frozenset(range(first, min(first + l3, cpus))) for first in range(0, cpus, l3)]
    node_of = {cpu: 2 * number // len(groups) for number, group in enumerate(groups) for cpu in group}
    found = {
        cpu: Cpu(cpu, True, cpu // 2, cpu // l3, node_of[cpu], 0, frozenset({cpu // 2 * 2, cpu // 2 * 2 + 1}))
        for cpu in range(cpus)
    }
    nodes = [
        Node(number, frozenset(cpu for cpu in node_of if node_of[cpu] == number), 64 << 30)
        for number in sorted(set(node_of.values()))
    ]
    return Topology(
        found,
        tuple(L3(number, group, 32 << 20) for number, group in enumerate(groups)),
        tuple(nodes),
        (Package(0, frozenset(range(cpus))),),
    )


def vm(
    vmid: int, *, own: tuple[int, ...] = (), home: frozenset[int] = frozenset(), waits: float = 0.0
) -> Row:
    vcpus = tuple(frozenset({cpu}) for cpu in own) or (home,) * 4
    vm_class = VmClass.DEDICATED if own else VmClass.SHARED
    return Row(vmid, vm_class.value, vcpus, 1, frozenset({0}), 4096, 1.25, waits)


def shown(frame: Frame, *, width: int = 80, **more: object) -> list[str]:
    console = Console(width=width, height=200, highlight=False, force_terminal=False)
    with console.capture() as capture:
        console.print(screen.draw(frame, width=width, **more))  # type: ignore[arg-type]
    return capture.get().splitlines()


CROWD = tuple(
    vm(100 + number, own=(2 * number, 2 * number + 1)) if number % 3 == 0
    else vm(100 + number, home=frozenset(range(16)), waits=number / 50)
    for number in range(48)
)  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("cpus", [2, 24, 256])
def test_no_line_is_wider_than_the_terminal_and_every_cpu_and_vm_is_there(width, cpus):
    busy = {cpu: cpu / cpus for cpu in range(cpus)}
    rows = CROWD if cpus == 256 else (vm(100, own=(1, 0)), vm(101, home=frozenset({0, 1})))
    lines = shown(Frame(machine(cpus), rows, busy), width=width)
    assert max(map(len, lines)) <= width
    blocks = sum(line.count(block) for line in lines for block in screen.BLOCKS[1:])
    assert blocks == cpus
    for row in rows:
        assert any(f" {row.vmid} " in line for line in lines), row.vmid
    assert any(line.split()[-3:] == ["waits", "MiB", "balloon"] for line in lines)


def test_a_cpus_use_is_told_by_the_height_of_its_block():
    lines = shown(Frame(machine(4), (), {0: 0.0, 1: 0.5, 2: 1.0}))
    assert any("L3 0 ▁▄█·" in line for line in lines)


def test_siblings_lie_side_by_side_however_they_are_numbered():
    topology = machine(4)
    split = {cpu: Cpu(cpu, True, cpu % 2, 0, 0, 0, frozenset({cpu % 2, cpu % 2 + 2})) for cpu in range(4)}
    split_topology = Topology(split, topology.l3s, topology.nodes, topology.packages)
    ((_, groups),) = screen._nodes(split_topology)
    assert groups == [("L3 0", [0, 2, 1, 3])]


def test_who_owns_cpus_has_a_letter_below_them_and_in_the_table():
    lines = shown(Frame(machine(4), (vm(105, own=(3, 2)), vm(100, home=frozenset({0, 1}))), {}))
    use = next(line for line in lines if "L3 0" in line)
    owners = lines[lines.index(use) + 1]
    assert owners.index("AA") == use.index("····") + 2
    assert any(line.lstrip().startswith("A") and "105" in line and "3,2" in line for line in lines)


def test_what_was_done_and_what_is_wrong_stand_below():
    lines = shown(
        Frame(machine(2), (), {}, acted=("moved VM 100: it waited",), acted_s_ago=12.0, wrong=("VM 7: no",))
    )
    assert "12 s ago: moved VM 100: it waited" in lines
    assert "wrong: VM 7: no" in lines


def test_nothing_of_others_moves_the_cursor():
    hostile = "\x1b[2Jforged\nline\u202e"
    lines = shown(
        Frame(machine(2), (vm(100, own=(0,)),), {}, acted=(hostile,), acted_s_ago=1.0, wrong=(hostile,)),
        selected=100, details=[hostile],
    )  # fmt: skip
    assert sum("?[2Jforged?line?" in line for line in lines) == 3
    assert all(line.isprintable() for line in lines)


def test_details_take_the_place_of_the_cpus():
    lines = shown(Frame(machine(2), (vm(100, own=(0,)),), {}), selected=100, details=["  why"], keys=True)
    assert "  why" in lines and not any("L3" in line and "▁" in line for line in lines)
    assert lines[-1].strip() == screen.KEYS


@pytest.mark.parametrize("height", [20, 24, 50])
@pytest.mark.parametrize("selected", [None, 100, 124, 147])
@pytest.mark.parametrize("details", [None, [f"  knob {number} " + "x" * 70 for number in range(70)]])
def test_what_is_chosen_wrong_and_pressed_is_seen_however_many_vms_there_are(height, selected, details):
    picture = Frame(machine(64), CROWD, {}, wrong=("VM 7: no",))
    more = {"selected": selected, "details": details if selected else None, "keys": True}
    lines = shown(picture, height=height, **more)
    assert len(lines) <= height
    assert lines[-1].strip() == screen.KEYS and "wrong: VM 7: no" in lines
    first, last = re.search(r"VMs (\d+) to (\d+) of 48", "\n".join(lines)).groups()
    assert int(first) <= (selected or 100) - 99 <= int(last)
    assert any(f" {selected or 100} " in line for line in lines)
    assert not more["details"] or re.search(r"and \d+ more: pxsched status", "\n".join(lines))


def test_where_there_is_room_all_vms_are_shown_and_nothing_is_said_of_others():
    lines = shown(Frame(machine(4), CROWD, {}), height=60, keys=True)
    assert sum(" dedicated " in line or " shared " in line for line in lines) == 48
    assert not any("of 48" in line for line in lines)


def test_a_vm_that_is_not_opted_in_is_shown_as_such():
    one = Sighting(200, Machine(memory_mib=2048), Process(5, 6))
    row = frames.row(one, None, None, machine(4))
    assert (row.vm_class, row.vcpus, row.memory_mib, row.running) == ("not opted in", (), 2048, None)
    assert any("200" in line and "not opted in" in line for line in shown(Frame(machine(4), (row,), {})))


def test_a_vm_of_ours_that_has_no_place_is_not_called_a_strangers():
    one = Sighting(200, Machine(memory_mib=2048, hookscript="local:snippets/pxsched"), Process(5, 6))
    assert frames.row(one, None, None, machine(4)).vm_class == "not placed"


def test_what_is_not_as_wanted_is_named_once_for_each_owner():
    ledger = ledgers.Ledger()
    for tid in range(3):
        ledger.journal[f"affinity:{tid},1"] = Entry(100, "vcpu", "0", "1", 5, note="Invalid argument")
    ledger.journal["affinity:9,1"] = Entry(101, "vcpu", "0", "1", 5, drifts=3)
    assert frames.wrong(ledger) == [
        "VM 100: 3 knobs: Invalid argument",
        "VM 101: 1 knobs are turned by somebody else again and again",
    ]


# Keys


def test_keys_choose_a_vm_and_stop_at_both_ends():
    frame = Frame(machine(2), (vm(100, own=(0,)), vm(101, own=(1,))), {})
    assert watching.chosen(frame, None, "") is None
    assert watching.chosen(frame, None, DOWN) == 100
    assert watching.chosen(frame, 100, DOWN) == watching.chosen(frame, 101, DOWN) == 101
    assert watching.chosen(frame, 101, UP) == watching.chosen(frame, 100, UP) == 100
    assert watching.chosen(frame, 999, "") == 100, "the VM is gone"
    assert watching.chosen(Frame(machine(2), (), {}), 100, DOWN) is None


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"\x1b[A", [UP]), (b"\x1bOB", [DOWN]), (b"\r", [ENTER]), (b"q", [LEAVE]), (b"\x03", [LEAVE]),
        (b"x", []),
        (b"\x1b[B\x1b[Bk\rz", [DOWN, DOWN, UP, ENTER]), (b"\x1b[5~", []),
    ],
)  # fmt: skip
def test_keys_are_read_as_terminals_send_them(data, keys):
    ours, theirs = os.pipe()
    os.write(theirs, data)
    assert watching.next_keys(ours, 5) == keys
    assert watching.next_keys(ours, 0.01) is None
    os.close(theirs)
    assert watching.next_keys(ours, 5) == [LEAVE], "the terminal is gone"
    os.close(ours)


# The command


def tree(base: Path) -> Root:
    """A node of two CPUs with a VM that holds one of them."""
    for cpu in range(2):
        directory = base / f"sys/devices/system/cpu/cpu{cpu}/topology"
        directory.mkdir(parents=True)
        (directory / "core_cpus_list").write_text(f"{cpu}\n")
        (directory / "physical_package_id").write_text("0\n")
    (base / "sys/devices/system/cpu/online").write_text("0-1\n")
    (base / "proc/sys/kernel/random").mkdir(parents=True)
    (base / "proc/sys/kernel/random/boot_id").write_text("x\n")
    root = Root(str(base))
    with ledgers.locked(root) as ledger:
        for vmid in (100, 101):
            cpu = frozenset({vmid - 100})
            placement = Placement(vmid, VmClass.DEDICATED, (cpu,), cpu, frozenset(), ("because",))
            ledger.claims[vmid] = Claim(placement, State.RUNNING)
        ledgers.save(root, ledger)
    return root


def test_once_prints_a_picture_into_a_pipe(tmp_path):
    root = tree(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pxsched", "--root", root.base, "top", "--once"],
        capture_output=True, text=True, check=True, cwd=CHECKOUT, timeout=30,
    )  # fmt: skip
    assert "dedicated" in done.stdout and "\x1b" not in done.stdout


def test_without_a_terminal_it_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pxsched", "--root", tree(tmp_path).base, "top"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=CHECKOUT, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1 and "top --once" in done.stderr


class Tmux:
    """A terminal of 80 columns that runs one command."""

    def __init__(self, directory: Path, command: str) -> None:
        self._socket = str(directory / "tmux")
        self("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "30", command)

    def __call__(self, *words: str) -> str:
        command = ["tmux", "-S", self._socket, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout

    def wait_for(self, text: str) -> str:
        deadline = time.monotonic() + 20
        while text not in (seen := self("capture-pane", "-p")):
            assert time.monotonic() < deadline, f"{text!r} does not appear in:\n{seen}"
            time.sleep(0.05)
        return seen

    def ends(self) -> bool:
        deadline = time.monotonic() + 20
        while self("list-sessions"):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_it_lives_in_a_terminal_and_is_driven_by_keys(tmp_path):
    (tmp_path / "root").mkdir()
    root = tree(tmp_path / "root")
    command = f"{sys.executable} -m pxsched --root {root.base} top --period 0.5"
    terminal = Tmux(tmp_path, f"cd {CHECKOUT}; {command}")
    try:
        assert "101" in terminal.wait_for("q: leave")
        terminal("send-keys", "Down", "Down", "Enter")
        assert "because" in terminal.wait_for("VM 101\n")
        with ledgers.locked(root) as ledger:
            del ledger.claims[100]
            ledgers.save(root, ledger)
        terminal.wait_for("1 VMs")
        terminal("send-keys", "Enter")
        terminal.wait_for("package 0")
        terminal("send-keys", "q")
        assert terminal.ends()
    finally:
        terminal("kill-server")
