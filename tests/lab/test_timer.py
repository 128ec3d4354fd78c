"""The periodic pass as systemd runs it: three minutes of it stand for half an hour of the usual period."""

import json
import re
from collections.abc import Iterator

import pytest

from lab.guests import LinuxGuest, steady_linux_args
from lab.node import Node
from lab.polling import TooLate, poll
from lab.product import HOOK, Product, Turned

PERIOD_S = 3


@pytest.fixture
def timer(node: Node, product: Product) -> Iterator[Product]:
    """The installed timer with a short period."""
    if not node.run("systemctl", "cat", "pxsched.timer").out:
        pytest.skip("this version installs no timer")
    drop_in = "/run/systemd/system/pxsched.timer.d"
    node.run("mkdir", "-p", drop_in).check()
    often = f"OnActiveSec=1\nOnUnitActiveSec={PERIOD_S}\nOnUnitInactiveSec={PERIOD_S}\nAccuracySec=100ms\n"
    node.write(f"{drop_in}/lab.conf", f"[Timer]\nOnBootSec=\n{often}")
    node.run("systemctl", "daemon-reload").check()
    yield product
    product.stop_timer()
    node.run("rm", "-r", drop_in)
    node.run("systemctl", "daemon-reload")


def start_timer(node: Node) -> None:
    node.run("systemctl", "start", "pxsched.timer").check()


def said(node: Node, since: str) -> list[str]:
    """What pxsched itself wrote to the journal since a cursor."""
    words = ["journalctl", "-u", "pxsched.service", f"--after-cursor={since}", "-o", "json", "--no-pager"]
    lines = node.run(*words, "--output-fields=MESSAGE,_COMM").check().out.splitlines()
    return [line for line in lines if '"_COMM":"systemd"' not in line]


def cursor(node: Node) -> str:
    found = re.search(r"cursor: (\S+)", node.run("journalctl", "-n1", "--show-cursor").check().out)
    assert found
    return found[1]


def waited(node: Node, vmid: int) -> tuple[int, int]:
    """How long all vCPU threads of a VM ran and waited, in ms, by the kernel's schedstat."""
    pid = node.pid(vmid)
    tids = [thread.tid for thread in node.threads(vmid) if thread.vcpu is not None]
    found = node.files(*(f"/proc/{pid}/task/{tid}/schedstat" for tid in tids))
    counters = [[int(word) for word in text.split()] for text in found.values()]
    return sum(ran for ran, *_ in counters) // 10**6, sum(wait for _, wait, _ in counters) // 10**6


def share_waiting(node: Node, vmid: int, seconds: int) -> float:
    """The part of its runnable time that the VM waited, over so many of the lab's seconds."""
    ran, wait = waited(node, vmid)
    node.shell(f"sleep {seconds}")
    ran_after, wait_after = waited(node, vmid)
    return (wait_after - wait) / max(1, ran_after - ran + wait_after - wait)


def test_the_journal_is_quiet_when_nothing_happens(node: Node, timer: Product) -> None:
    node.rom_guest(100, hookscript=HOOK)
    node.qm("start", "100").check()
    timer.tick()
    start_timer(node)
    since = cursor(node)
    passes = "systemctl show -P ExecMainStartTimestampMonotonic pxsched.service"
    seen: set[str] = set()

    def five_passes() -> bool:
        seen.add(node.shell(passes).out.strip())
        return len(seen) > 5

    poll(five_passes, "the timer makes passes", deadline_s=180)
    assert said(node, since) == []


def test_a_crowded_guest_is_moved_to_where_there_is_room(node: Node, timer: Product) -> None:
    timer.configure(f'[node]\ncooldown_s = {PERIOD_S}\ndeviation = 0.5\nbalance_memory = false\n'
                    '[defaults]\ncpus = "0-7"\n')  # fmt: skip
    crowd = {vmid: node.rom_guest(vmid, cores=4, hookscript=HOOK) for vmid in (100, 101, 102, 103)}
    for vmid, guest in crowd.items():
        node.qm("start", str(vmid)).check()
        guest.wait_started(4)
    homes = {vmid: frozenset(timer.vcpus(vmid).values()) for vmid in crowd}
    # The two that live together get busy, one of the others a little.
    together = next(
        (one, other) for one in crowd for other in crowd if one < other and homes[one] == homes[other]
    )
    third = next(vmid for vmid in crowd if homes[vmid] != homes[together[0]])
    for vmid in together:
        crowd[vmid].set_burning(0, 1, 2, 3)
    crowd[third].set_burning(0)
    before = max(share_waiting(node, vmid, 10) for vmid in together)
    assert before > 0.3, "eight busy vCPUs on four CPUs wait"
    start_timer(node)

    def apart() -> bool:
        now = [frozenset(timer.vcpus(vmid).values()) for vmid in together]
        return now[0] != now[1]

    poll(apart, "the two busy guests no longer share a home", deadline_s=240, interval_s=2)
    after = max(share_waiting(node, vmid, 10) for vmid in together)
    assert after < before * 0.75, "one of them still has the third guest for a neighbour"


def test_weights_one_two_four_get_one_two_four(node: Node, timer: Product) -> None:
    timer.configure('[defaults]\ncpus = "9"\n')
    weights = {100: 100, 101: 200, 102: 400}
    for vmid, weight in weights.items():
        guest = node.rom_guest(vmid, cores=1, burning=1, cpuunits=weight, hookscript=HOOK)
        node.qm("start", str(vmid)).check()
        guest.wait_started(1)
    start_timer(node)
    before = {vmid: waited(node, vmid)[0] for vmid in weights}
    node.shell("sleep 30")
    got = [(waited(node, vmid)[0] - before[vmid]) / weight for vmid, weight in weights.items()]
    assert max(got) < 1.05 * min(got)


def actual_mib(node: Node, vmid: int) -> int:
    """The memory that a guest's balloon leaves it, by QEMU."""
    answer: int = json.loads(node.qm("qmp", str(vmid), "query-balloon").check().out)["actual"]
    return answer >> 20


def fill(guest: LinuxGuest, *, held_mib: int = 0) -> int:
    """The guest writes to nearly all the memory it has; what it holds from then on. held_mib: until then.

    It lets go of nothing meanwhile: a pass would see that as memory to take.
    """
    left_mib = available_mib(guest.tell("/bin/busybox cat /proc/meminfo"))
    guest.tell(f"memory {held_mib + left_mib - 12}", timeout_s=120)
    return held_mib + left_mib - 12


def available_mib(meminfo: str) -> int:
    said = re.search(r"MemAvailable: *(\d+)", meminfo)
    assert said
    return int(said[1]) // 1024


@pytest.mark.timeout(1200)  # a guest that hangs is reset
def test_memory_moves_between_guests(node: Node, timer: Product) -> None:
    bounds = "[defaults]\nstarved_mib = 40\nwasteful_mib = 80\n"
    timer.configure(f"[node]\nbalance_cpu = false\n{bounds}")
    guests = {
        vmid: node.linux_guest(
            vmid, memory=384, balloon=160, shares=0, hookscript=HOOK, args=steady_linux_args()
        )
        for vmid in (101, 102)
    }
    for vmid, guest in guests.items():
        node.qm("start", str(vmid)).check()
        guest.wait_ready()
    start_timer(node)

    def wait(vmid: int, what: str, *, least: int = 0, most: int = 1 << 20) -> None:
        try:
            poll(lambda: least <= actual_mib(node, vmid) <= most, f"VM {vmid}: {what}",
                 deadline_s=200, interval_s=3)  # fmt: skip
        except TooLate as late:
            sizes = {vmid: actual_mib(node, vmid) for vmid in guests}
            raise TooLate(f"{late}; {sizes}; {node.read('/run/pxsched/balance.json')}") from None

    for vmid in guests:
        wait(vmid, "what it does not use is taken", most=165)
    held_mib = 0
    for size_mib in (195, 230, 265):  # each time 40 MiB or more
        held_mib = fill(guests[101], held_mib=held_mib)
        wait(101, "a guest that uses more gets more", least=size_mib)
    assert actual_mib(node, 102) <= 165
    # The first needs it no longer, the second does, and the host has nothing to give: both have touched what
    # they were given, and no pass, which takes some of the host's itself, runs while that is settled.
    timer.stop_timer()
    fill(guests[101], held_mib=held_mib)
    fill(guests[102])
    reserved_mib = available_mib(node.read("/proc/meminfo"))
    timer.configure(f"[node]\nbalance_cpu = false\nreserved_mib = {reserved_mib}\n{bounds}")
    guests[101].tell("free")
    start_timer(node)
    wait(102, "a guest that uses more gets more", least=180)
    wait(101, "what it no longer uses is taken", most=240)


def test_the_service_turns_everything_that_the_hook_turns(
    node: Node, timer: Product, untouched: Turned
) -> None:
    timer.start_turning_everything(untouched)
    by_hook, vcpus = timer.turned(), timer.vcpus(100)
    timer.run("restore", "--all").check()
    assert timer.turned() == untouched
    node.run("systemctl", "start", "pxsched.service").check()
    assert timer.vcpus(100) == vcpus
    by_service = timer.turned()
    assert (by_service.governors, by_service.files) == (by_hook.governors, by_hook.files)
    node.run("kill", "-9", str(node.pid(100))).check()
    node.gone(100)
    node.run("systemctl", "start", "pxsched.service").check()
    assert timer.turned() == untouched


def test_the_service_may_do_its_work_and_nothing_else(node: Node, timer: Product) -> None:
    probe = (
        "for file in /etc/passwd /usr/bin/qm-probe /root/probe /boot/probe /var/lib/vz/probe; do "
        "(: >>$file) 2>/dev/null && echo may write $file; done; "
        "(: >/run/pxsched/probe) && echo may write /run/pxsched; "
        "cat /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor > /sys/devices/system/cpu/cpu2/cpufreq/"
        "scaling_governor && echo may write sysfs; true"
    )
    drop_in = "/run/systemd/system/pxsched.service.d"
    node.run("mkdir", "-p", drop_in).check()
    node.write("/run/probe.sh", probe)
    node.write(f"{drop_in}/lab.conf", "[Service]\nExecStart=\nExecStart=/bin/sh /run/probe.sh\n")
    node.run("systemctl", "daemon-reload").check()
    since = cursor(node)
    try:
        node.run("systemctl", "start", "pxsched.service").check()
    finally:
        node.shell(f"rm -r {drop_in} /run/probe.sh; systemctl daemon-reload")
    may = {
        line.partition("may write ")[2].partition('"')[0] for line in said(node, since) if "may write" in line
    }
    assert may == {"/run/pxsched", "sysfs"}


def test_root_gets_one_mail_of_what_he_should_know(node: Node, timer: Product) -> None:
    """By Debian's dma, whose sendmail needs a group's rights as Postfix's does: the timer's unit has none."""
    mailbox, end = "/var/mail/root", 'notify = "none" in [node] of the settings.'
    timer.configure('[node]\nnotify = "mail"\n[vm.100]\ncpus = "4000"\nstrict = true\n')
    node.rom_guest(100, cores=1, hookscript=HOOK)
    assert node.qm("start", "100").code != 0
    node.run("systemctl", "start", "pxsched.service").check()
    poll(lambda: end in node.files(mailbox).get(mailbox, ""), "a mail is there", deadline_s=120)
    mail = node.read(mailbox)
    node.run("rm", mailbox).check()
    assert mail.count("\nSubject: pxsched on lab: something to look at\n") == 1, mail
    assert "\nVM 100 is strict and was refused its start: no CPU is left" in mail
    assert node.qm("start", "100").code != 0
    node.run("systemctl", "start", "pxsched.service").check()
    node.shell("sleep 5")
    assert not node.files(mailbox), "it was told"
