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
| `/etc/default/proxmox-scheduler` | features and governors, as `KEY=VALUE` | root |
| the environment | the same names as in that file, and wins over it | root |

Nothing that a tenant can write is a setting. A VM's tag `pxsched-NAME` chooses the profile NAME only when
that profile says `tag = true`; notes are never read. Unknown keys and bad values are named by the hook and by
`pxsched doctor`, with the nearest valid name; the default is used, and the VM starts.

Changes count from the next pass of the timer; nothing has to be restarted.

A file that cannot be read is not one that says nothing. While it is no TOML, cannot be opened, or /etc/pve
is down, what it said last stays in force, for VMs that run and for those that start; the hook, the timer,
`pxsched status` and `pxsched doctor` say so until it is whole. Only a file that was never read since the
node started leaves the defaults, and that is said, too. To do away with settings, remove the file; an empty
one counts at once if it has a comment in it, and else after a minute, as it may be a copy in the middle. A
file that is but the beginning of what it was counts after ten seconds.

    [node]
    housekeeping = "0,32"

    [defaults]
    smt = "require"

    [profile.fast]
    tag = true                 # a VM may choose it by the tag pxsched-fast
    class = "dedicated"
    governor = "performance"

    [vm.100]
    profile = "fast"
    strict = true

## `/etc/default/proxmox-scheduler`

| name | default | meaning |
|---|---|---|
| `PROXMOX_FEATURE_FLAGS` | none | comma list; `karpenter`: keep a VM that describes this node |
| `CPU_GOVERNOR_BUSY` | unset | frequency governor of the CPUs of pinned and dedicated VMs while they run |
| `CPU_GOVERNOR_FREE` | unset | governor of CPUs that are given back; unset: the one they had before |

`VERBOSITY`, `WATCH_PATH`, `MAX_RETRIES` and `RESYNC_INTERVAL` of the older daemon of that name are accepted
and mean nothing any more.
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
    yield "| key | default | values | meaning |"
    yield "|---|---|---|---|"
    for name, setting in model.declared.items():
        cells = (f"`{key_of(name)}`", _shown(setting.default), _values(setting.default), setting.help)
        yield f"| {' | '.join(cells)} |"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, StrEnum):
        return f'`"{value.value}"`'
    if isinstance(value, float):
        return f"`{value:g}`"
    return '`""`' if value == "" else f"`{value}`"


def _values(value: object) -> str:
    if isinstance(value, bool):
        return "`true`, `false`"
    if isinstance(value, StrEnum):
        return ", ".join(f"`{member.value}`" for member in type(value))
    if isinstance(value, int | float):
        return "number"
    return "text"


if __name__ == "__main__":
    main()
