"""/etc/default/proxmox-scheduler and the environment: the few upper-case names that count, and what became of
the others that the daemon of that name knows, as variables or as flags in EXTRA_ARGS.

Rules: systemd.exec(5), EnvironmentFile=, and systemd.service(5) for $EXTRA_ARGS, which is split at blanks.
The daemon's names, and that a flag wins over the variable of its name: cmd/proxmox-scheduler/main.go and
docs/scheduler.md of sergelogvinov/karpenter-provider-proxmox.
"""

import re
from collections.abc import Iterator, Mapping

from pxsched.errors import nearest
from pxsched.settings.policy import NodeSettings, Policy
from pxsched.value import NOTHING, Value

DEFAULT_FILE = "etc/default/proxmox-scheduler"
FEATURES = ("karpenter",)
FEATURE_FLAGS = "PROXMOX_FEATURE_FLAGS"
EXTRA_ARGS = "EXTRA_ARGS"

# Upper-case name -> the setting it is the lowest layer of.
OF_NODE = {"CPU_GOVERNOR_FREE": "governor_free", "RESERVED_CPUS": "housekeeping"}
OF_DEFAULTS = {"CPU_GOVERNOR_BUSY": "governor"}
COUNT = (FEATURE_FLAGS, *OF_DEFAULTS, *OF_NODE)

# What pxsched does otherwise than the daemon, or has nothing to set for.
DIFFERENT = {
    "VERBOSITY": "there are no levels: the journal and `pxsched status` say what was done",
    "WATCH_PATH": "no directory is watched: Proxmox calls the hookscript",
    "MAX_RETRIES": "what failed is tried again by each pass of the timer",
    "RESYNC_INTERVAL": "pxsched.timer looks every ten seconds",
    "SHARED_POLICY": "VMs that are opted in get homes, which may overlap; others stay where Proxmox starts"
    ' them. `class = "dedicated"` gives CPUs of their own, `vcpu = false` places no vCPUs',
    "SHARED_MIN_WIDTH": "a home is what is free of an L3 group, of a NUMA node or of several",
    "REBALANCE_DEBOUNCE": "`moves` and `cooldown_s` in [node] say how much the timer moves, and how often",
}
RENAMED = {"RESERVED_CPUS": "counts as `housekeeping` of [node], where that is not set"}
_FLAGS = {f"--{name.lower().replace('_', '-')}": name for name in (*DIFFERENT, *OF_NODE, *OF_DEFAULTS)}
_FLAGS |= {"-v": "VERBOSITY", "--timer-interval": "RESYNC_INTERVAL"}


class UpperCase(Value):
    """node, defaults: by setting, what stands below the same settings of the other files. notes: what the
    older daemon would do otherwise; nothing is wrong with it.
    """

    node: Mapping[str, str] = NOTHING
    defaults: Mapping[str, str] = NOTHING
    features: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Said(Value):
    where: str
    name: str
    value: str


def read(text: str, environ: Mapping[str, str]) -> UpperCase:
    """What the file's text and the environment, which wins, come to."""
    warnings: list[str] = []
    lines = list(_assignments(text, warnings))
    flags = [flag for line in lines if line.name == EXTRA_ARGS for flag in _flags(line, warnings)]
    values: dict[str, str] = {}
    notes = []
    for said in (*lines, *flags):
        if said.name in COUNT:
            values[said.name] = said.value
        if said.name in DIFFERENT:
            notes.append(f"{said.where}: {said.name} is the older daemon's: {DIFFERENT[said.name]}")
        elif said.name in RENAMED:
            notes.append(f"{said.where}: {said.name} {RENAMED[said.name]}")
    values |= {name: environ[name] for name in COUNT if name in environ}
    if any(line.name == EXTRA_ARGS for line in lines) and "CPU_GOVERNOR_BUSY" not in values:
        notes.append(
            f"/{DEFAULT_FILE}: the older daemon set the governor `performance` for pinned VMs untold;"
            " here the line CPU_GOVERNOR_BUSY=performance does"
        )
    return UpperCase(
        node=_settings(NodeSettings, OF_NODE, values, warnings),
        defaults=_settings(Policy, OF_DEFAULTS, values, warnings),
        features=_features(values.get(FEATURE_FLAGS, ""), warnings),
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def _assignments(text: str, warnings: list[str]) -> Iterator[_Said]:
    """The lines that say something; a backslash at the end of one goes on in the next."""
    begun = ""
    for number, part in enumerate(text.splitlines(), 1):
        if part.endswith("\\"):
            begun += part[:-1]
            continue
        line, begun = (begun + part).strip().removeprefix("export ").strip(), ""
        if not line or line[0] in "#;":
            continue
        name, equals, value = line.partition("=")
        name, where = name.rstrip(), f"/{DEFAULT_FILE}:{number}"
        if not equals:
            warnings.append(f"{where}: {line[:60]!r} is not KEY=VALUE")
        elif name in COUNT or name in DIFFERENT or name == EXTRA_ARGS:
            yield _Said(where, name, _unquoted(value))
        else:
            known = (*COUNT, *DIFFERENT, EXTRA_ARGS)
            warnings.append(f"{where}: unknown setting {name[:60]!r}{nearest(name, known)}")


def _unquoted(value: str) -> str:
    value = value.strip()
    if value[:1] in ("'", '"') and (quoted := re.fullmatch(r"(['\"])(.*?)\1\s*(?:#.*)?", value)):
        return quoted[2]
    return value.split(" #")[0].strip()


def _flags(line: _Said, warnings: list[str]) -> Iterator[_Said]:
    """The variables that the flags of EXTRA_ARGS are: `--flag value`, `--flag=value`, `-v 1` or `-v1`."""
    words = iter(re.sub("[\"']", "", line.value).split())
    for word in words:
        flag, equals, value = word.partition("=")
        if re.fullmatch(r"-v-?\d+", flag):
            flag, equals, value = "-v", "=", flag[2:]
        where = f"{line.where}: {EXTRA_ARGS} {flag[:60]}"
        if flag not in _FLAGS:
            if flag != "--version":
                warnings.append(f"{where}: the older daemon has no such flag{nearest(flag, _FLAGS)}")
            continue
        if equals or (value := next(words, "")):
            yield _Said(where, _FLAGS[flag], value)
        else:
            warnings.append(f"{where}: its value is missing")


def _settings(
    model: type[Policy] | type[NodeSettings],
    names: Mapping[str, str],
    values: Mapping[str, str],
    warnings: list[str],
) -> dict[str, str]:
    found = {}
    for name, setting in names.items():
        try:
            if value := values.get(name):
                found[setting] = str(model.declared[setting].parse(value))
        except ValueError as error:
            warnings.append(f"{name}: {error}")
    return found


def _features(text: str, warnings: list[str]) -> frozenset[str]:
    named = {name.strip() for name in text.split(",") if name.strip()}
    warnings.extend(
        f"{FEATURE_FLAGS}: unknown feature {name[:40]!r}{nearest(name, FEATURES)}"
        for name in sorted(named - set(FEATURES))
    )
    return frozenset(named & set(FEATURES))
