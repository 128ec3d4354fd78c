"""Where the program's own files lie, and how it is started again by itself.

In a checkout they are beside the package; else in PREFIX/share/pxsched, where PREFIX/lib/PYTHON/site-packages
has the package: put there by a wheel (its data files), by install.sh, or by Debian's package.
"""

import os
import sys
from pathlib import Path

from pxsched.errors import UserError

PACKAGE = Path(__file__).resolve().parent
SCRIPT = "pxsched"


def prefix() -> Path:
    """What the program is installed below; of no meaning in a checkout."""
    return PACKAGE.parents[3] if len(PACKAGE.parents) > 3 else Path("/")


def hooks() -> Path:
    """The directory of hookscript, units and templates of settings. Raises UserError where it is missing."""
    beside = PACKAGE.parent
    for place in (beside / "hooks", prefix() / "share/pxsched/hooks", beside / "share/pxsched/hooks"):
        if (place / SCRIPT).exists():
            return place
    raise UserError(f"the program's files are not beside {PACKAGE}", hint="install it anew")


def again(*words: str, module: str = "pxsched") -> list[str]:
    """The command that runs this very program, in `environment`."""
    return [sys.executable, "-m", module, *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
