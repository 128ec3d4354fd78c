"""Every value pxsched has turned goes back when its reason is gone, however that happens."""

import pytest

from lab.node import Node
from lab.polling import poll
from lab.product import Product, Turned


def nothing_is_held(product: Product) -> bool:
    status = product.json("status")
    return not status["vms"] and not status["knobs"]


@pytest.mark.parametrize("how", ["stop", "guest power-off", "SIGKILL of QEMU"])
def test_all_is_back_after(how: str, node: Node, product: Product, untouched: Turned) -> None:
    product.start_turning_everything(untouched)
    if how == "stop":
        node.qm("stop", "100").check()
    elif how == "guest power-off":
        node.qm("tell", "100", "poweroff").check()
    else:
        node.run("kill", "-9", str(node.pid(100))).check()
    node.gone(100)
    poll(lambda: product.turned() == untouched, f"all is back after {how}", deadline_s=60)
    assert nothing_is_held(product)


def test_all_is_back_after_a_lost_post_stop_and_one_tick(
    node: Node, product: Product, untouched: Turned
) -> None:
    product.start_turning_everything(untouched)
    node.run("rm", "/run/qemu-server/100.cleanup").check()
    node.run("kill", "-9", str(node.pid(100))).check()
    node.gone(100)
    assert product.turned() != untouched
    product.tick()
    assert product.turned() == untouched
    assert nothing_is_held(product)


def test_all_is_back_after_our_hook_was_killed_while_it_worked(
    node: Node, product: Product, untouched: Turned
) -> None:
    product.start_turning_everything(untouched)
    product.run("restore", "--all").check()
    assert product.turned() == untouched
    hook = "timeout -s KILL {} /var/lib/vz/snippets/pxsched 100 post-start"
    for after_s in (0.3, 0.6, 0.9, 1.2):
        node.shell(hook.format(after_s))
    product.tick()
    assert product.turned() != untouched
    node.shell("timeout -s KILL 0.6 /var/lib/vz/snippets/pxsched 100 pre-stop")
    node.qm("stop", "100").check()
    assert product.turned() == untouched
    assert nothing_is_held(product)


def test_restore_puts_everything_back_under_running_vms(
    node: Node, product: Product, untouched: Turned
) -> None:
    product.start_turning_everything(untouched)
    product.run("restore", "--all").check()
    assert product.turned() == untouched
    assert set(product.vcpus(100).values()) == {"0-15"}
    assert node.pid(100)


def test_all_is_back_after_a_power_cut_and_vms_are_placed_again(
    node: Node, product: Product, untouched: Turned
) -> None:
    product.start_turning_everything(untouched)
    node.reboot()
    product.stop_timer()
    assert product.turned() == untouched
    assert nothing_is_held(product)
    product.start_turning_everything(untouched)
