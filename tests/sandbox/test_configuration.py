"""`qm create`, `set` and `config` keep `VMID.conf` as Proxmox does."""

from pathlib import Path

import pytest

from pxsched.guest import config
from pxsched.sandbox import qm
from pxsched.sandbox.sandbox import QmError
from pxsched.sandbox.stored import Stored

from .conftest import create

FILE = """\
#A note%3A with a colon
#and a second line
affinity: 0-1
cores: 2
name: web

[PENDING]
affinity: 3,2
delete: name

[before]
#note of a snapshot
cores: 1

[special:cloudinit]
name: web
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "100.conf"
    path.write_text(FILE)
    return path


def test_what_is_read_and_written_back_means_the_same(file):
    before = config.parse(FILE)
    Stored.read(file).write(file)
    assert config.parse(file.read_text()) == before


def test_an_option_in_force_replaces_the_one_that_waits(file):
    stored = Stored.read(file).with_options({"affinity": "7"})
    assert stored.options["affinity"] == "7"
    assert "affinity" not in stored.pending


def test_a_start_merges_what_waits(file):
    merged = Stored.read(file).merged()
    assert dict(merged.options) == {"affinity": "3,2", "cores": "2"}
    assert not merged.pending
    assert "[before]" in merged.text()


def test_a_pending_change_back_to_what_is_in_force_is_none(file):
    stored = Stored.read(file).with_pending({"affinity": "0-1", "name": "web"})
    assert not stored.pending


def test_deleting_waits_too(file):
    stored = Stored.read(file).with_pending({"cores": None, "affinity": None})
    assert stored.deletions == {"affinity", "cores", "name"}
    assert dict(stored.merged().options) == {}


def test_notes_survive_whatever_is_in_them(sandbox):
    notes = "[PENDING]\naffinity: 0\n100 % ünicode: #\n"
    create(sandbox, description=notes.strip())
    text = Path(sandbox.root, "etc/pve/qemu-server/100.conf").read_text()
    parsed = config.parse(text)
    assert parsed.description == notes.strip()
    assert not parsed.pending
    assert "affinity" not in parsed.options


def test_options_take_one_dash_or_two_and_a_value_after_a_space_or_an_equals_sign():
    words = ["--cores", "2", "-name=a-b", "--description", "-5 degrees", "--forceStop"]
    expected = {"cores": "2", "name": "a-b", "description": "-5 degrees", "forceStop": "1"}
    assert qm.parse(words) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cores": 0}, "cores"),
        ({"affinity": "0-3:2"}, "affinity"),
        ({"memory": "lots"}, "memory"),
        ({"colour": "red"}, "Unknown option: colour"),
        ({"name": "a\nargs: x"}, "one line"),
        ({"hookscript": "local:snippets/missing"}, "does not exist"),
        ({"hookscript": "local:snippets/../x"}, "invalid volume"),
        ({"guest": "dos"}, "neither rom nor linux"),
    ],
)
def test_bad_values_are_refused_and_nothing_is_created(sandbox, options, message):
    with pytest.raises(QmError, match=message):
        sandbox.qm("create", 100, **options)
    assert not Path(sandbox.root, "etc/pve/qemu-server/100.conf").exists()


@pytest.mark.parametrize("vmid", ["99", "0100", "../100", "1e9", "1234567890"])
def test_a_vmid_is_a_number_from_100_on(sandbox, vmid):
    with pytest.raises(QmError, match="no VM ID"):
        sandbox.qm("create", vmid)


def test_the_kind_of_guest_is_not_in_the_configuration(sandbox):
    create(sandbox, guest="linux")
    assert "guest" not in Path(sandbox.root, "etc/pve/qemu-server/100.conf").read_text()


def test_what_takes_effect_at_once_does_so_on_a_running_vm(sandbox):
    create(sandbox)
    sandbox.qm("start", 100)
    sandbox.qm("set", 100, tags="a;b", shares=0, cpuunits=200, cores=2)
    pending = sandbox.qm("pending", 100).output.splitlines()
    assert {"cur tags: a;b", "cur shares: 0", "cur cpuunits: 200", "new cores: 2"} <= set(pending)
    assert "cur cores: 2" not in pending


def test_a_running_vm_is_not_destroyed(sandbox):
    create(sandbox)
    sandbox.qm("start", 100)
    with pytest.raises(QmError, match="is running"):
        sandbox.qm("destroy", 100)
    sandbox.qm("stop", 100)
    sandbox.qm("destroy", 100)
    directories = ("etc", "run", "var", "sandbox")
    assert not [path for name in directories for path in Path(sandbox.root, name).rglob("*100*")]
