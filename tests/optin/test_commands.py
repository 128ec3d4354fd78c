"""What the three commands make of their arguments."""

import pytest

from pxsched.errors import UserError


@pytest.mark.parametrize(
    "words", [("list",), ("enable", "--all", "--dry-run"), ("disable", "--tag", "db")], ids=" ".join
)
@pytest.mark.parametrize("name", ["pvee1", "../nodes/pve1"])
def test_a_node_that_the_cluster_has_not_is_an_error_and_no_empty_answer(node, pxsched, words, name):
    node.vm(100, "tags: db\n")
    with pytest.raises(UserError, match=f"^there is no node '{name}'"):
        pxsched(node.root, *words, "--node", name)


def test_a_node_without_vms_is_no_error(node, pxsched):
    (node.base / "etc/pve/nodes/pve2").mkdir()
    assert pxsched(node.root, "list", "--node", "pve2")[1].splitlines()[1:] == []
