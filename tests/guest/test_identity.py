"""One VM is not another of the same number: what Proxmox renews when it creates, clones, restores, rolls
back.
"""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.guest import identity
from pxsched.guest.identity import Identity

U1, U2, G1, G2 = (str(uuid.UUID(int=number)) for number in (1, 2, 3, 4))


def vm(uuid="", genid="", ctime="", **more):
    options = {"smbios1": f"uuid={uuid}"} if uuid else {}
    options |= {"vmgenid": genid} if genid else {}
    options |= {"meta": f"creation-qemu=9.0.2,ctime={ctime}"} if ctime else {}
    return {**options, **more}


BEFORE = vm(U1, G1, "1700000000")


@pytest.mark.parametrize(
    ("what", "after", "is_it"),
    [
        ("it was edited", {**BEFORE, "cores": "4", "name": "x"}, True),
        ("it was rolled back, which renews vmgenid", vm(U1, G2, "1700000000"), True),
        ("it was restored from its backup", vm(U1, G2, "1700000000"), True),
        ("its UUID was edited", vm(U2, G1, "1700000000"), True),
        ("vmgenid was switched off", vm(U1, "0", "1700000000"), True),
        ("meta was lost", vm(U1, G1), True),
        ("another VM was created", vm(U2, G2, "1700000099"), False),
        ("another clone of the same template took the number", vm(U2, G2, "1700000000"), False),
        ("another VM without vmgenid", vm(U2, ctime="1700000099"), False),
        ("another VM that says nothing", {}, False),
    ],
)
def test_a_vm_is_known_again(what, after, is_it):
    assert identity.same(identity.of(BEFORE), identity.of(after)) is is_it, what


def test_vms_of_times_without_uuid_are_told_apart_by_their_creation():
    old = identity.of(vm(ctime="5"))
    assert identity.same(old, identity.of(vm(ctime="5")))
    assert not identity.same(old, identity.of(vm(ctime="6")))
    assert not identity.same(old, identity.of(vm(U1)))
    assert not identity.same(identity.of(vm(U1)), identity.of(vm(genid=G1)))


def test_older_ones_still_by_their_number_alone():
    assert identity.same(Identity(), identity.of({"cores": "2"}))
    assert not identity.same(Identity(), identity.of(BEFORE))


@pytest.mark.parametrize(
    ("text", "found"),
    [(f"base64=1,uuid={U1},family=YQ==", U1), (f"uuid={U1.upper()}", U1), (f"family=uuid={U1}", ""),
     ("uuid=none", ""), (f"uuid={U1}x", ""), ("", "")],
)  # fmt: skip
def test_a_uuid_is_read_as_proxmox_writes_it(text, found):
    assert identity.of({"smbios1": text}).uuid == found


@given(st.dictionaries(st.sampled_from(["smbios1", "vmgenid", "meta"]), st.text()))
def test_whatever_a_tenant_writes_is_itself_and_not_a_vm_with_a_uuid(options):
    found = identity.of(options)
    assert identity.same(found, found)
    assert not identity.same(found, Identity(uuid=U1, genid=G1, ctime_s="123"))
