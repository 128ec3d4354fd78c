"""What a node goes through on a bad day."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from statistics import mean
from typing import Any

from lab.node import Node
from lab.product import HOOK, Product


def test_eight_dedicated_vms_started_at_once_never_share_a_cpu(node: Node, product: Product) -> None:
    product.configure('[defaults]\nclass = "dedicated"\n[node]\nhousekeeping = "0"\n')
    vmids = range(100, 108)
    for vmid in vmids:
        node.rom_guest(vmid, cores=2, hookscript=HOOK)
    with ThreadPoolExecutor(len(vmids)) as pool:
        started = list(pool.map(lambda vmid: node.qm("start", str(vmid), timeout_s=400), vmids))
    for result in started:
        result.check()
    placed = {vm["vmid"] for vm in product.json("status")["vms"]}
    owners: dict[int, int] = {}
    for vmid in placed:
        for cpus in node.vcpu_masks(vmid).values():
            assert len(cpus) == 1
            (cpu,) = cpus
            assert owners.setdefault(cpu, vmid) == vmid and list(owners).count(cpu) == 1
    assert len(owners) == 2 * len(placed)
    assert len(placed) >= 7, "15 CPUs hold seven such VMs beside housekeeping"


ROUNDS = int(os.environ.get("PXSCHED_LAB_ROUNDS", "1"))
"""Of a minute each, on emulated CPUs; tests/storm does twenty on real ones."""
LONGEST_DELAY_S = 2.0
PHASES = ("pre-start", "post-start")


def test_sixteen_starts_at_once_with_passes_and_kills_share_no_cpu(node: Node, product: Product) -> None:
    product.configure(
        '[defaults]\nclass = "dedicated"\nsmt = "share"\nmemory = "off"\n[node]\nhousekeeping = "0"\n'
    )
    storm = ["/lab/checkout/tests/lab/inside/storm.py", str(ROUNDS), *map(str, range(100, 116))]
    done = node.run("python3", "-I", *storm, timeout_s=200 + 200 * ROUNDS).check()
    assert "Traceback" not in done.err
    alone, *rounds = map(json.loads, done.out.splitlines())
    assert len(rounds) == ROUNDS
    delays_s = []
    for turn in rounds:
        for seen in (turn["at_once"], turn["settled"]):
            own = [cpus[0] for cpus in seen.values() if len(cpus) == 1]
            assert len(own) == len(set(own)) and 0 not in own, seen
        assert 4 <= len(turn["settled"]) <= 15
        assert all(len(cpus) == 1 for cpus in turn["settled"].values()), "15 CPUs beside housekeeping"
        delays_s += delays(alone["heard"], turn["heard"])
    assert max(delays_s) < LONGEST_DELAY_S, sorted(delays_s)[-20:]


def delays(alone: list[dict[str, Any]], together: list[dict[str, Any]]) -> list[float]:
    """How long each phase of a start waited, as if emulated CPUs did not take turns on one.

    A wait is for somebody who works; he is slower than alone by as much as the hooks need longer on a CPU.
    tests/storm measures waits of real CPUs.
    """
    found = []
    for phase in PHASES:
        slow = [one for one in together if one.get("phase") == phase]
        assert all(one["code"] == 0 for one in slow)
        needs_s = [mean(one["cpu_s"] for one in some if one.get("phase") == phase) for some in (alone, slow)]
        found += [one["waited_s"] * needs_s[0] / needs_s[1] for one in slow]
    return found


def test_a_cpu_goes_offline_under_a_vm_and_returns(node: Node, product: Product) -> None:
    node.rom_guest(100, affinity="6,13", hookscript=HOOK)
    node.qm("start", "100").check()
    online = "/sys/devices/system/cpu/cpu13/online"
    try:
        assert node.write(online, "0") == 0
        product.tick()
        masks = node.vcpu_masks(100)
        assert masks[0] == {6}
        assert 13 not in masks[1] and masks[1]
    finally:
        assert node.write(online, "1") == 0
    product.tick()
    assert product.vcpus(100) == {0: "6", 1: "13"}


def test_a_full_run_keeps_no_vm_from_starting(node: Node, product: Product) -> None:
    node.rom_guest(100, affinity="6,13", hookscript=HOOK)
    # Only our part of it: systemd and QEMU need theirs.
    fill = "dd if=/dev/zero of=/run/pxsched/filler bs=4k 2>/dev/null"
    node.shell(f"mkdir -p /run/pxsched; mount -t tmpfs -o size=4k,mode=700 tmpfs /run/pxsched; {fill}")
    try:
        started = node.qm("start", "100").check()
        assert "pxsched:" in started.out
        assert node.pid(100)
    finally:
        node.run("umount", "/run/pxsched").check()
    product.tick()
    assert product.vcpus(100) == {0: "6", 1: "13"}


def test_a_jump_of_the_clock_changes_nothing(node: Node, product: Product) -> None:
    node.rom_guest(100, affinity="6,13", hookscript=HOOK)
    node.qm("start", "100").check()
    now = int(node.run("date", "+%s").check().out)
    try:
        for other in (now - 10**7, now + 10**7):
            node.run("date", "-s", f"@{other}").check()
            product.tick()
            assert product.vcpus(100) == {0: "6", 1: "13"}
            assert len(product.json("status")["vms"]) == 1
    finally:
        node.run("date", "-s", f"@{now}").check()
