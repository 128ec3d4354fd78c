"""What `args` makes of a VM's vCPUs: arguments that Proxmox appends to QEMU's command line.

Rules: PVE::Tools::split_args (Perl's Text::ParseWords::shellwords); QEMU's util/keyval.c (keys and values),
machine_parse_property_opt() in softmmu/vl.c (a later `-smp` is merged into the earlier ones, key by key), and
machine_parse_smp_config() in hw/core/machine-smp.c (missing and impossible numbers).
"""

import math
import re
from collections.abc import Iterator, Mapping

from pxsched.guest.options import MAX_VCPUS
from pxsched.value import Value

_PIECE = re.compile(r"""(?s)"((?:[^\\"]|\\.)*)"|'((?:[^\\']|\\.)*)'|((?:[^\\"'\s]|\\.)+)|(\s+)""", re.ASCII)
_NUMBER = re.compile(r"\s*\+?(0[xX][0-9a-fA-F]{1,8}|0[0-7]{0,10}|[1-9][0-9]{0,9})", re.ASCII)
_KEYS = ("cpus", "maxcpus", "sockets", "dies", "modules", "cores", "threads")
_OTHER_MACHINES = ("drawers", "books", "clusters")  # levels that x86 has not: 1 at most


class Smp(Value):
    """The processors of a guest. cpus: vCPUs at its start; maxcpus: with those that can be plugged in;
    sockets x dies x modules x cores x threads = maxcpus.
    """

    cpus: int
    maxcpus: int
    sockets: int
    cores: int
    dies: int = 1
    modules: int = 1
    threads: int = 1

    @property
    def per_socket(self) -> int:
        """vCPUs of a whole socket."""
        return self.dies * self.modules * self.cores * self.threads

    def __str__(self) -> str:
        return ",".join(f"{key}={getattr(self, key)}" for key in _KEYS)


def words(text: str) -> list[str]:
    """The arguments; none at all where a quote or a backslash is left open, as Perl has it."""
    found: list[str] = []
    word: str | None = None
    position = 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None:
            return []
        position = piece.end()
        double, single, bare, blank = piece.groups()
        if blank is not None:
            found += [] if word is None else [word]
            word = None
        elif single is not None:
            word = (word or "") + single
        else:
            word = (word or "") + re.sub(r"(?s)\\(.)", r"\1", double if bare is None else bare)
    return found if word is None else [*found, word]


def smp(args: str, configured: Smp) -> Smp | None:
    """What QEMU makes of the `-smp` that Proxmox writes for the configured one, followed by those in `args`;
    None where `args` has none. Raises ValueError with the reason why QEMU would not start.
    """
    if "smp" not in args:
        return None
    given: dict[str, int] = {}
    for pairs in _smp_arguments(words(args)):
        for key, value in pairs.items():
            if key not in _KEYS + _OTHER_MACHINES:
                raise ValueError(f"-smp has no {key[:20]!r}")
            given[key] = _number(key, value)
    if not given:
        return None
    numbers = {"cpus": configured.cpus, "maxcpus": configured.maxcpus}
    numbers |= {"sockets": configured.sockets, "cores": configured.cores}
    return _completed(numbers | given)


def _smp_arguments(arguments: list[str]) -> Iterator[Mapping[str, str]]:
    """The keys of each `-smp`, and those of `-machine` that mean the same. Raises ValueError."""
    following = iter(arguments)
    for word in following:
        match word[1:] if word.startswith("--") else word:
            case "-smp":
                yield _keys(next(following, ""))
            case "-machine" | "-M":
                parts = next(following, "").split(",")
                yield _keys(",".join(part[4:] for part in parts if part.startswith("smp.")))


def _keys(text: str) -> dict[str, str]:
    """`KEY=VALUE,...`; the first may be a value alone, which is `cpus`."""
    pairs = {}
    parts = text.removesuffix(",").split(",") if text else []
    for number, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if not equals and number:
            raise ValueError(f"-smp has no {part[:20]!r}")
        pairs.update({key: value} if equals else {"cpus": part})
    return pairs


def _number(key: str, text: str) -> int:
    """As C writes numbers: decimal, hexadecimal or octal. QEMU before 9.0 guessed what a zero should be."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{key}={text[:20]!r} is no number")
    digits = match[1]
    number = int(digits, 16 if digits[:2].lower() == "0x" else 8 if digits.startswith("0") else 10)
    if not 0 < number <= MAX_VCPUS:
        raise ValueError(f"{key}={number} is not from 1 to {MAX_VCPUS}")
    return number


def _completed(given: Mapping[str, int]) -> Smp:
    """All numbers; how many threads a core has follows from the others where it is not said."""
    if any(given.get(key, 1) > 1 for key in _OTHER_MACHINES):
        raise ValueError(f"x86 has no {' or '.join(_OTHER_MACHINES)}")
    cpus, maxcpus, sockets, cores = (given[key] for key in ("cpus", "maxcpus", "sockets", "cores"))
    dies, modules = given.get("dies", 1), given.get("modules", 1)
    threads = given.get("threads") or maxcpus // (sockets * dies * modules * cores)
    levels = (sockets, dies, modules, cores, threads)
    if math.prod(levels) != maxcpus:
        raise ValueError(f"a topology of {' x '.join(map(str, levels))} is not maxcpus={maxcpus}")
    if cpus > maxcpus:
        raise ValueError(f"cpus={cpus} is more than maxcpus={maxcpus}")
    return Smp(cpus, maxcpus, sockets, cores, dies, modules, threads)
