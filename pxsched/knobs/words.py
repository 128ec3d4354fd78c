"""What a person reads of a knob whose key is in the journal. The key itself is for programs."""

from pxsched.knobs.knob import Knob, from_key
from pxsched.root import Root


def label(root: Root, key: str) -> str:
    """What a person calls the knob; the key where it is of another version."""
    knob = _knob(key)
    return key if knob is None else knob.label(root)


def shown(key: str, value: str) -> str:
    """A value of that knob as a person reads it, `-` for nothing; as it is where it is none of the knob's."""
    knob = _knob(key)
    try:
        return (value if knob is None else knob.shown(value)) or "-"
    except (ValueError, LookupError, TypeError):  # a damaged journal's
        return value


def _knob(key: str) -> Knob | None:
    try:
        return from_key(key)
    except ValueError:
        return None
