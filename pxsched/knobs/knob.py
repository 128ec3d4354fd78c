"""What a knob is: one value of the running system that can be read, written and put back.

A knob's key names it for ever (in the journal too), so it carries whatever makes it unmistakable: a thread's
start time, an interrupt's device. A knob whose object is gone raises `Gone`; what the kernel refuses raises
OSError with its errno.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from importlib import import_module

from pxsched.root import Root
from pxsched.value import Value, fields, items


class Gone(Exception):
    """The object behind a knob no longer exists, or is another one with the same number."""


class Rank(IntEnum):
    """The order of writing, both ways: a cpuset resets the affinities of the threads in it, and some values
    of a device (FOLLOWER) can be set only after another one.
    """

    CPUSET = 10
    DEVICE = 50
    FOLLOWER = 60
    THREAD = 90


class Knob(Value):
    """The fields of a subclass (int or str, without commas) make up the key."""

    kind = ""
    rank = Rank.DEVICE

    @property
    def peer(self) -> str:
        """Whom a write waits for: another program, such as QEMU. Empty: nobody, as the kernel does it.

        To read a knob never takes an answer of somebody else's.
        """
        return ""

    @property
    def key(self) -> str:
        return f"{self.kind}:" + ",".join(str(value) for _, value in items(self))

    def check(self) -> None:
        """Raises ValueError where the fields, from a journal that may be damaged, name nothing of ours."""

    def read(self, root: Root) -> str:
        """The value now. Raises Gone or OSError."""
        raise NotImplementedError

    def write(self, root: Root, value: str) -> None:
        """Sets the value. Raises Gone or OSError."""
        raise NotImplementedError

    def original(self, root: Root) -> str:
        """The value to put back later, where that says more than `read` does."""
        return self.read(root)

    def put_back(self, root: Root, original: str) -> None:
        """Ends our holding it. Raises Gone or OSError."""
        self.write(root, original)

    def present(self, root: Root) -> bool:
        """Whether the object is the one the key means; `read` may take that for granted, `write` never."""
        return True

    def same(self, now: str, want: str) -> bool:
        """Whether two values mean the same to the kernel."""
        return now == want

    def label(self, root: Root) -> str:
        """What a person calls it."""
        raise NotImplementedError

    def shown(self, value: str) -> str:
        """A value as a person reads it. Raises ValueError for one that is not the knob's."""
        return value


@contextmanager
def in_words(words: Mapping[int, str]) -> Iterator[None]:
    """Has an OSError of the kernel say what its number means for this knob. words: by errno."""
    try:
        yield
    except OSError as error:
        said = words.get(error.errno or 0)
        if said is None:
            raise
        raise OSError(error.errno, said) from None


# kind -> module:class; imported when first met, so that the hook loads only what it turns.
KINDS = {
    "affinity": "pxsched.knobs.thread:ThreadAffinity",
    "governor": "pxsched.knobs.frequency:Governor",
    "energy": "pxsched.knobs.frequency:EnergyPreference",
    "dropin": "pxsched.knobs.scope:DropIn",
    "memory-nodes": "pxsched.knobs.scope:MemoryNodes",
    "partition": "pxsched.knobs.scope:Partition",
    "slice": "pxsched.knobs.isolation:SliceCpus",
    "cgroup": "pxsched.knobs.isolation:GroupCpus",
    "scheduling": "pxsched.knobs.latency:Scheduling",
    "kvm": "pxsched.knobs.latency:KvmParameter",
    "resume-latency": "pxsched.knobs.latency:ResumeLatency",
    "irq": "pxsched.knobs.interrupt:InterruptAffinity",
    "irq-default": "pxsched.knobs.interrupt:DefaultAffinity",
    "irqbalance-irq": "pxsched.knobs.irqbalance:InterruptBan",
    "irqbalance-cpus": "pxsched.knobs.irqbalance:CpuBan",
    "nic-queue": "pxsched.knobs.nic:QueueMask",
    "balloon": "pxsched.knobs.balloon:Balloon",
}


def rank_of(key: str) -> Rank:
    """The rank of a journal entry's knob; unknown ones come last."""
    try:
        return _model(key).rank
    except ValueError:
        return Rank.THREAD


def _model(key: str) -> type[Knob]:
    kind = key.partition(":")[0]
    if kind not in KINDS:
        raise ValueError(f"unknown knob {key[:60]!r}")
    module, _, name = KINDS[kind].partition(":")
    model = getattr(import_module(module), name)
    assert isinstance(model, type) and issubclass(model, Knob)
    return model


def from_key(key: str) -> Knob:
    """The knob of a journal entry. Raises ValueError for a kind or field this version does not know."""
    model = _model(key)
    text = key.partition(":")[2]
    values = text.split(",") if text else []
    kinds = fields(model).values()
    if len(values) != len(kinds):
        raise ValueError(f"malformed knob {key[:60]!r}")
    knob = model(*(kind(text) for kind, text in zip(kinds, values, strict=True)))
    knob.check()
    return knob
