"""What stays where the hookscript was: Proxmox does not start a VM whose hookscript is missing, and a
snapshot, a backup or a VM that could not be changed may still name it. It does nothing of ours, and runs what
was chained.
"""

import shlex
from collections.abc import Mapping

from pxsched.chain import run
from pxsched.chain.entry import Entry
from pxsched.guest.identity import Identity
from pxsched.root import Root

# By this line a stub is known again.
MARK = "# pxsched was removed from this node."

_HEAD = f"""\
#!/bin/sh
{MARK} This file stays because Proxmox does not start a VM whose hookscript is
# missing, and a VM, a snapshot or a backup may still name it. It only runs what was chained to it before.
# When nothing names it any more: ./install.sh --uninstall --remove-stub, or delete it.
"""

_BODY = """\
vmid=$1 phase=$2 failed=0
case $vmid in '' | *[!0-9]*) exit 0 ;; esac
case $phase in pre-start | post-start | pre-stop | post-stop) ;; *) exit 0 ;; esac

# Whether the VM's configuration has such a line: its number may be another VM's by now.
has() { cat NODES/*/qemu-server/"$vmid.conf" 2>/dev/null | grep -qiE -e "$1"; }
run() {
    [ "$failed" = 0 ] || [ "$phase" != pre-start ] || return 0
    "$1" "$vmid" "$phase" || { code=$?; [ "$failed" != 0 ] || failed=$code; }
}

case $vmid in
CASES
esac
for script in HOOKS/*; do
    name=${script##*/}
    case $name in *.sh | *.py | *.pl) name=${name%.*} ;; esac
    case $name in *[!A-Za-z0-9_-]*) continue ;; esac
    [ ! -f "$script" ] || [ ! -x "$script" ] || run "$script"
done
exit "$failed"
"""

_ANY = "^(smbios1:.*uuid=|vmgenid:.*-|meta:.*ctime=)"


def text(root: Root, entries: Mapping[int, Entry]) -> bytes:
    """The stub. entries: what is chained to the VMs that name the script, by VMID."""
    cases = [
        f"    {vmid}) {_condition(entry.owner or Identity())} && run "
        f"{shlex.quote(run.path_of(root, vmid, entry.hookscript))} ;;"
        for vmid, entry in sorted(entries.items())
        if entry.hookscript
    ]
    body = _BODY.replace("CASES\n", "".join(f"{line}\n" for line in cases))
    body = body.replace("NODES", shlex.quote(root.path("etc/pve/nodes")))
    return (_HEAD + body.replace("HOOKS", shlex.quote(root.path(run.HOOKS_DIR)))).encode()


def _condition(owner: Identity) -> str:
    """As `identity.same` has it, in the shell."""
    uuids = [f"smbios1:(.*,)?[[:space:]]*uuid={owner.uuid}"] if owner.uuid else []
    uuids += [f"vmgenid: {owner.genid}"] if owner.genid else []
    if uuids:
        return f"has '^({'|'.join(uuids)})(,|[[:space:]]|$)'"
    if owner.ctime_s:
        return f"has '^meta:.*ctime={owner.ctime_s}(,|$)'"
    return f"has . && ! has '{_ANY}'"


def is_stub(data: bytes | None) -> bool:
    """Whether it is one of ours, of whichever version."""
    return data is not None and b"# pxsched was removed from this node" in data[:200]
