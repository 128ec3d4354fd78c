"""The CPUs that host tasks may use: cpusets of systemd's slices, and of Proxmox's containers.

Rules: systemd.resource-control(5) AllowedCPUs=; cgroup-v2.rst cpuset. An empty cpuset falls back to the
parent's, so the value of these knobs is the set in force.

Before Linux 6.2 a cpuset that changes, comes or goes overwrites the masks that its tasks chose themselves; so
an original also names those tasks there, and they get back what they chose. systemd hands the controller to
all units at once and takes it from all at once: each original names the tasks of all of them.
"""

import errno
import json
import os
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pxsched import stored
from pxsched.errors import UserError
from pxsched.host import cgroup, cpulist, systemd
from pxsched.host.cgroup import Task
from pxsched.knobs.knob import Gone, Knob, Rank
from pxsched.root import Root
from pxsched.value import Value

UNITS = ("system.slice", "user.slice", "init.scope")
GROUPS = ("lxc", "lxc.monitor")
MOMENT_S, LONG_MOMENT_S = 0.25, 1.0
_PROPERTY = "AllowedCPUs"


class Original(Value):
    """cpus: as configured, empty for none; force: in force. bare: systemd kept no property of its own for it.
    tasks: those with a mask of their own.
    """

    cpus: str
    force: str
    bare: bool = True
    tasks: tuple[Task, ...] = ()

    def dumps(self) -> str:
        tasks = [[task.tid, task.start_ticks, cpulist.format(task.cpus)] for task in self.tasks]
        return json.dumps([self.cpus, self.force, self.bare, tasks], separators=(",", ":"))


def loads(value: str) -> Original | None:
    """The original in a journal's text; None for a plain CPU list. Raises Damaged, UserError."""
    if not value.startswith("["):
        return None
    cpus, force, bare, tasks = stored.items(stored.parse(value), 4)
    bound = tuple(_task(*stored.items(body, 3)) for body in stored.listed(tasks))
    return Original(stored.text(cpus), stored.text(force), stored.truth(bare), bound)


def _task(tid: object, start_ticks: object, cpus: object) -> Task:
    return Task(
        stored.integer(tid, 1, 1 << 22), stored.integer(start_ticks), cpulist.parse(stored.text(cpus))
    )


class _HostCpus(Knob):
    """What slices and plain groups have in common; name: of the unit or group, one of a fixed list."""

    rank = Rank.CPUSET
    names = tuple[str, ...]()

    name: str

    def label(self, root: Root) -> str:
        return f"CPUs of {self.name}"

    def check(self) -> None:
        if self.name not in self.names:
            raise ValueError(f"{self.name[:40]!r} is none of {', '.join(self.names)}")

    def read(self, root: Root) -> str:
        if not self._exists(root):
            raise Gone(self.key)
        try:
            return cpulist.format(cgroup.effective_cpus(root, self.name))
        except UserError as error:
            raise OSError(str(error)) from error

    def original(self, root: Root) -> str:
        return Original(self._configured(root), self.read(root), self._bare(root), self._bound(root)).dumps()

    def write(self, root: Root, value: str) -> None:
        if not self._exists(root):
            raise Gone(self.key)
        before = self._bound(root)
        narrow = cgroup.effective_cpus(root, self.name)
        back = loads(value)
        self._set(root, value if back is None else back.cpus, bare=back is not None and back.bare)
        _rebind(root, before if back is None else _chosen(before, back.tasks, narrow))

    def same(self, now: str, want: str) -> bool:
        back = loads(want)
        return cpulist.parse(now) == cpulist.parse(want if back is None else back.force)

    def shown(self, value: str) -> str:
        back = loads(value)
        return value if back is None else back.force

    def _exists(self, root: Root) -> bool:
        return cgroup.exists(root, self.name)

    def _bound(self, root: Root) -> tuple[Task, ...]:
        if cgroup.keeps_masks(root):
            return ()
        groups = [group for group in (*UNITS, *GROUPS) if cgroup.exists(root, group)]
        return tuple(task for group in groups for task in cgroup.self_bound(root, group))

    def _configured(self, root: Root) -> str:
        return cgroup.configured_cpus(root, self.name)

    def _bare(self, root: Root) -> bool:
        return True

    @abstractmethod
    def _set(self, root: Root, cpus: str, *, bare: bool) -> None:
        """Configures the set. bare: leave nothing behind that says so."""


class SliceCpus(_HostCpus):
    """A systemd unit, by its runtime property; systemd has no cpusets on cgroup v1.

    A slice without tasks has no cgroup; its property counts as soon as somebody logs in.
    """

    kind = "slice"
    names = UNITS

    @property
    def peer(self) -> str:
        return systemd.NAME

    def read(self, root: Root) -> str:
        if cgroup.version(root) is cgroup.Version.V2 and not cgroup.exists(root, self.name):
            return systemd.runtime_property(root, self.name, _PROPERTY)
        return _HostCpus.read(self, root)

    def write(self, root: Root, value: str) -> None:
        if cgroup.version(root) is not cgroup.Version.V1:
            _HostCpus.write(self, root, value)
        elif loads(value) is None:
            raise OSError(errno.EOPNOTSUPP, "systemd has no cpusets on cgroup v1")

    def _exists(self, root: Root) -> bool:
        return cgroup.version(root) is not None

    def _configured(self, root: Root) -> str:
        return cgroup.configured_cpus(root, self.name) or systemd.runtime_property(root, self.name, _PROPERTY)

    def _bare(self, root: Root) -> bool:
        return systemd.drop_in(root, self.name, _PROPERTY) is None

    def _set(self, root: Root, cpus: str, *, bare: bool) -> None:
        with _as_knob(self.key):
            if bare:
                systemd.forget_property(root, self.name, _PROPERTY)
            else:
                systemd.set_property(root, self.name, _PROPERTY, cpus)
        if not cpus:
            cgroup.clear(root, self.name, "cpuset.cpus")
            self._await_end(root)
        elif bare:
            cgroup.put(root, self.name, "cpuset.cpus", cpus)
        else:
            self._await(root, cpus)

    def _await_end(self, root: Root) -> None:
        """Before tasks get their masks back: the controller goes with the last unit, and resets them all."""
        others = any(systemd.drop_in(root, unit, _PROPERTY) for unit in UNITS if unit != self.name)
        if others or cgroup.keeps_masks(root) or not root.live:
            return
        path = f"{cgroup.path(root, self.name)}/cpuset.cpus"
        end = time.monotonic() + LONG_MOMENT_S
        while root.exists(path) and time.monotonic() < end:
            time.sleep(0.01)

    def _await(self, root: Root, cpus: str) -> None:
        """systemd answers a moment before it writes; what is read back then would be the old set."""
        end = time.monotonic() + MOMENT_S
        while cgroup.configured_cpus(root, self.name) != cpus and time.monotonic() < end:
            if not cgroup.exists(root, self.name):
                return
            time.sleep(0.002)


class GroupCpus(_HostCpus):
    """A group that is no unit of systemd's, by its file."""

    kind = "cgroup"
    names = GROUPS

    def _set(self, root: Root, cpus: str, *, bare: bool) -> None:
        if cpus:
            cgroup.put(root, self.name, "cpuset.cpus", cpus)
        else:
            cgroup.clear(root, self.name, "cpuset.cpus")


def _chosen(now: Iterable[Task], originals: Iterable[Task], narrow: frozenset[int]) -> list[Task]:
    """The masks that tasks should have once their group is wide again: what they chose last.

    now: those that have a mask of their own inside the narrow set. A task that still has what the narrowing
    made of its choice gets the choice back; one that chose anew meanwhile keeps that.
    """
    latest = {(task.tid, task.start_ticks): task for task in now}
    for task in originals:
        key = (task.tid, task.start_ticks)
        within = task.cpus & narrow or narrow
        if latest.get(key, task).cpus in (within, task.cpus):
            latest[key] = task
    return list(latest.values())


def _rebind(root: Root, tasks: Iterable[Task]) -> None:
    """Gives tasks the part of their own masks that their group allows, where the kernel did not."""
    if not root.live:
        return
    for task in tasks:
        now = cgroup.read_task(root, task.tid)
        if now is None or now.start_ticks != task.start_ticks or now.cpus == task.cpus:
            continue
        try:
            os.sched_setaffinity(task.tid, task.cpus)
        except OSError:
            # Ended meanwhile; bound by the kernel for good; or its group allows none of these CPUs, and then
            # it has all that the group allows.
            continue


@contextmanager
def _as_knob(key: str) -> Iterator[None]:
    try:
        yield
    except systemd.NoSuchUnit:
        raise Gone(key) from None
