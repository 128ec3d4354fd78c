"""What a proof writes into the admin's file, and what it leaves alone."""

import os
import tomllib

import pytest

from pxsched.errors import UserError
from pxsched.root import Root
from pxsched.settings import files, keeping
from pxsched.settings.policy import EmulatorPlace, Wish

FILE = """# ours
[defaults]
smt = "prefer"   # as ever

[vm.100]   # the database
class = "shared"
prefer = "cache"

[vm.101]
fifo = 1
"""
VALUES = {"wish": Wish.DEDICATED, "emulator": EmulatorPlace.OFF, "nic": False, "fifo": 2}


@pytest.fixture
def root(tmp_path):
    return Root(str(tmp_path))


def write(root: Root, text: str) -> None:
    os.makedirs(root.path("etc/pxsched"), exist_ok=True)
    with open(root.path(files.NODE_FILE), "w") as file:
        file.write(text)


def text(root: Root) -> str:
    return root.read_bytes(files.NODE_FILE).decode()


def test_a_vm_gets_its_table_with_the_reason_above(root):
    write(root, FILE.replace("[vm.100]", "[vm.105]"))
    keeping.keep(root, 100, VALUES, ["pxsched prove, 2026-11-26: dedicated over home"])
    assert text(root) == FILE.replace("[vm.100]", "[vm.105]") + (
        "\n[vm.100]\n# pxsched prove, 2026-11-26: dedicated over home\n"
        'class = "dedicated"\nemulator = "off"\nnic = false\nfifo = 2\n'
    )
    policy = files.load(root, {}).policy(100)
    assert (policy.wish, policy.emulator, policy.nic, policy.fifo) == tuple(VALUES.values())


def test_keys_that_are_there_are_replaced_and_all_else_stays_word_for_word(root):
    write(root, FILE)
    keeping.keep(root, 100, {"wish": Wish.DEDICATED}, ["why"])
    assert text(root) == FILE.replace('class = "shared"\n', "").replace(
        "[vm.100]   # the database\n", '[vm.100]   # the database\n# why\nclass = "dedicated"\n'
    )


def test_where_there_is_no_file_one_is_made(root):
    keeping.keep(root, 100, {"wish": Wish.DEDICATED}, [])
    assert tomllib.loads(text(root)) == {"vm": {"100": {"class": "dedicated"}}}
    assert os.stat(root.path(files.NODE_FILE)).st_mode & 0o777 == 0o644


def test_the_files_mode_stays(root):
    write(root, FILE)
    os.chmod(root.path(files.NODE_FILE), 0o600)
    keeping.keep(root, 100, {"wish": Wish.DEDICATED}, [])
    assert os.stat(root.path(files.NODE_FILE)).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    ["vm.100.class = 'shared'\n", "[vm]\n100 = {class = 'shared'}\n",
     '[vm.100]\nclass = """shared\n"""\n', "[vm.100]\n'class' = 'shared'\n"],
)  # fmt: skip
def test_a_form_that_cannot_be_changed_safely_is_left_and_the_lines_are_said(root, content):
    write(root, content)
    with pytest.raises(UserError, match=r"form that cannot be changed here \(class = \"dedicated\"\)"):
        keeping.keep(root, 100, {"wish": Wish.DEDICATED}, [])
    assert text(root) == content


def test_a_file_that_is_no_toml_is_left_as_it_is(root):
    write(root, "[vm.100\n")
    with pytest.raises(UserError, match="nothing is written"):
        keeping.keep(root, 100, {"wish": Wish.DEDICATED}, [])
    assert text(root) == "[vm.100\n"
