"""Frozen values: classes that are nothing but their fields, at a fraction of what `dataclasses` costs a hook.

To decorate forty classes and to import what that needs takes a process 23 ms, twice what Python's start does.
Here nothing is compiled: the fields are the annotations, as there, and one `__init__` serves all classes. For
type checkers they are frozen dataclasses.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from dataclasses import replace as replace
    from typing import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        return lambda value: value


NOTHING: Mapping[Any, Any] = MappingProxyType({})
"""The default of a field that is a mapping."""


@dataclass_transform(frozen_default=True)
class Value:
    """Fields are annotated in the class, with a default where there is one: `size_mib: int = 0`.

    What is written without annotation belongs to the class. Two values are equal when they are of one class
    and all fields are.
    """

    _fields = NOTHING  # name -> annotation, inherited ones first

    def __init_subclass__(cls) -> None:
        cls._fields = {**cls._fields, **cls.__annotations__}

    if not TYPE_CHECKING:

        def __init__(self, *args: object, **kwargs: object) -> None:
            names, values = self._fields, vars(self)
            values.update(zip(names, args, strict=False))
            if len(args) == len(names) and not kwargs:  # thousands are made so
                return
            values.update(kwargs)
            given = len(values)
            if given < len(names):
                missing = names.keys() - values.keys()
                model = type(self)
                values.update({name: getattr(model, name) for name in missing if hasattr(model, name)})
            if given != len(args) + len(kwargs) or values.keys() != names.keys():
                raise TypeError(f"{type(self).__name__} has the fields {', '.join(names)}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} stays as it is")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} stays")

    def _values(self) -> tuple[object, ...]:
        return tuple(map(vars(self).__getitem__, self._fields))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self is other or self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in items(self))})"


V = TypeVar("V", bound=Value)
T = TypeVar("T")


def items(value: Value) -> Iterator[tuple[str, Any]]:
    """Name and content of each field, in their order."""
    return ((name, vars(value)[name]) for name in value._fields)


def fields(model: type[Value]) -> dict[str, Any]:
    """The fields' annotations by name, in their order."""
    return dict(model._fields)


if not TYPE_CHECKING:

    def replace(value: V, /, **changes: object) -> V:
        """The same value with some fields changed. Raises TypeError for a field that it has not."""
        new = object.__new__(type(value))
        values = vars(new)
        known = vars(value)
        values.update(known if len(known) == len(value._fields) else items(value))  # without what is cached
        values.update(changes)
        if len(values) != len(value._fields):
            raise TypeError(f"{type(value).__name__} has the fields {', '.join(value._fields)}")
        return new


class Memo(Generic[T]):
    """What was worked out for each VM the last time, and from what. Whoever passes the same again, equal in
    every part, gets the same answer, which saves a pass of `watch` what did not change since the one before.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[object, ...], T]] = {}

    def of(self, vmid: int, given: tuple[object, ...], work: Callable[[], T]) -> T:
        """work: gives the answer, and depends on nothing but what is `given`."""
        before = self._known.get(vmid)
        answer = before[1] if before is not None and before[0] == given else work()
        self._known[vmid] = given, answer  # what is the very same is compared fastest
        return answer

    def keep(self, vmids: Collection[int]) -> None:
        """Forgets all others."""
        for vmid in [vmid for vmid in self._known if vmid not in vmids]:
            del self._known[vmid]


def plain(content: object) -> Any:
    """Values, however deep, as JSON has them: fields by name."""
    if isinstance(content, Value):
        return {name: plain(one) for name, one in items(content)}
    if isinstance(content, Mapping):
        return {name: plain(one) for name, one in content.items()}
    return [plain(one) for one in content] if isinstance(content, list | tuple) else content
