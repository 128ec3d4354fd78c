"""Opting in is having our script as `hookscript`, a snippet on any storage; only root@pam can set it."""

import re

SCRIPT_NAME = "pxsched"

_OURS = re.compile(rf"[^:/\s]+:snippets/{SCRIPT_NAME}", re.ASCII)


def is_ours(volume: str) -> bool:
    """Whether a `hookscript` names our script."""
    return _OURS.fullmatch(volume) is not None
