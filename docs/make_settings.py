"""Prints docs/settings.md from the declarations in pxsched/settings/policy.py, so that the two cannot differ.

    python3 docs/make_settings.py > docs/settings.md
"""

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pxsched.settings.policy import NodeSettings, Policy, Settings, key_of

INTRODUCTION = """\
# Settings

This page is generated from `pxsched/settings/policy.py` by `docs/make_settings.py`.

## Where

| file | for | who may write it |
|---|---|---|
| `/etc/pve/pxsched.toml` | the whole cluster | root; Proxmox replicates it |
| `/etc/pxsched/pxsched.toml` | this node; wins over the cluster's, key by key | root |
| `/etc/default/proxmox-scheduler` | the few names below; the files above win | root |
| the environment | the same names, and wins over that file | root |

Nothing that a tenant can write is a setting. A VM's tag `pxsched-NAME` chooses the profile NAME only when
that profile says `tag = true`; notes are never read. Unknown keys and bad values are named by the hook and by
`pxsched doctor`, with the nearest valid name; the default is used, and the VM starts.

Changes count from the next pass of the timer; nothing has to be restarted.

The cluster's file may say of one node what it says of all: `[node.NAME]`, and below it `[node.NAME.vm.100]`
of VM 100 while it is there. CPU numbers mean other CPUs on another machine.

A file that cannot be read is not one that says nothing. While it is no TOML, cannot be opened, or /etc/pve
is down, what it said last stays in force, for VMs that run and for those that start; the hook, the timer,
`pxsched status` and `pxsched doctor` say so until it is whole. Only a file that was never read since the
node started leaves the defaults, and that is said, too. To do away with settings, remove the file; an empty
one counts at once if it has a comment in it, and else after a minute, as it may be a copy in the middle. A
file that is but the beginning of what it was counts after ten seconds.

## Recipes

CPU numbers are examples; `pxsched topology` shows those of a node. Write a recipe to
`/etc/pxsched/pxsched.toml`, then look at `pxsched doctor` and, before a VM starts, at `pxsched plan VMID`.

### A workstation whose GPU is passed through

One VM, 100, gets whole cores, and host tasks, containers, other VMs and interrupts stay off them. The guest
is told of its cores and caches. Of an 8-core machine with SMT the host keeps one core.

    [node]
    housekeeping = "0,8"
    isolation = "slices"
    others = "confine"
    device_interrupts = true

    [vm.100]
    class = "dedicated"
    smt = "require"            # siblings of a core belong to one guest core
    memory = "strict"          # from its own nodes, or it does not start
    shape = "apply"
    strict = true              # better no start than a bad one

Then `pxsched enable 100`.

### A node of a Kubernetes cluster

Karpenter fills the node with VMs that come and go. They are clones of templates on which
`pxsched enable VMID` was run, and clones keep the hookscript. In `/etc/default/proxmox-scheduler` stands
`PROXMOX_FEATURE_FLAGS=karpenter`.

    [node]
    housekeeping = "0,32"
    karpenter_reserved_mib = 8192

    [defaults]
    balloon = false            # a kubelet counts on all its memory
    shape = "apply"            # pinned workers are told which of their CPUs are siblings

### A hoster with more vCPUs and memory sold than there are

Everybody gets a home, CPU time is evened out, and memory goes where it is used. Tenants may write tags, so no
profile is open to them; who paid for cores of his own gets them.

    [node]
    reserved_mib = 8192        # the host's own, storage caches included
    moves = 4
    cooldown_s = 120

    [defaults]
    far_memory = "never"
    balloon_minimum_percent = 50

    [profile.paid]
    class = "dedicated"
    smt = "isolate"            # nobody on the siblings of its cores
    balloon = false

    [vm.100]
    profile = "paid"

Then `pxsched enable --all --balloon`.

## `/etc/default/proxmox-scheduler`

| name | default | meaning |
|---|---|---|
| `PROXMOX_FEATURE_FLAGS` | none | comma list; `karpenter`: keep a VM that describes this node |
| `CPU_GOVERNOR_BUSY` | `performance` by a line of the file that is installed | `governor` of `[defaults]` |
| `CPU_GOVERNOR_FREE` | unset: the governor they had before | `governor_free` of `[node]` |
| `RESERVED_CPUS` | unset | `housekeeping` of `[node]` |

`governor = ""` in `[defaults]`, a profile or a VM leaves the governors alone. A file that is there already is
kept as it is. The other names of the older daemon of that name, and its flags in `EXTRA_ARGS`, are known, and
`pxsched doctor` says what does the same here; [replacing.md](replacing.md) has how to move over.
"""


def main() -> None:
    sys.stdout.write(page())


def page() -> str:
    """The whole page."""
    vm = "Of one VM: `[defaults]`, overlaid by `[profile.NAME]`, overlaid by `[vm.VMID]`."
    return "\n".join(
        [
            INTRODUCTION,
            "## `[node]`\n",
            *_table(NodeSettings),
            "\n## `[defaults]`, `[profile.NAME]`, `[vm.VMID]`\n",
            f"{vm}\n",
            *_table(Policy),
            "\n`tag` (profiles only, default false): a VM may choose the profile by its tag `pxsched-NAME`.",
            "`profile` (VMs only): the profile that the admin chooses for it; it wins over tags.\n",
        ]
    )


def _table(model: type[Settings]) -> Iterator[str]:
    yield "| key | default | takes | meaning |"
    yield "|---|---|---|---|"
    for name, setting in model.declared.items():
        cells = (f"`{key_of(name)}`", shown(setting.default), setting.values, setting.help)
        yield f"| {' | '.join(cells)} |"


def shown(value: object) -> str:
    """A default as it is written in the file."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, StrEnum):
        return f'`"{value.value}"`'
    if isinstance(value, float):
        return f"`{value:g}`"
    return '`""`' if value == "" else f"`{value}`"


if __name__ == "__main__":
    main()
