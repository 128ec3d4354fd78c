"""Mail to root, by the sendmail of this machine, whichever program that is.

systemd starts it, in a unit of its own: within ours it could not do its work, as nothing there may write
outside a few directories or gain the rights of a program's group (Postfix's postdrop). Nobody waits for it.
Rules: sendmail(1) of Postfix for `-i`; RFC 3834 for Auto-Submitted, which keeps automata from answering.
"""

import errno
import os
from collections.abc import Sequence

from pxsched.host import systemd
from pxsched.output import printable
from pxsched.root import Root

SENDMAIL = "usr/sbin/sendmail"
MOST_LINES, MOST_CHARACTERS = 40, 300
# What sendmail may take to hand it over.
PATIENCE_S = 120
END = """\
Each is told once, and again when it was away for an hour and came back. What is so now: pxsched status.
What to do about it: pxsched doctor. No more of this mail: notify = "none" in [node] of the settings.
"""


def message(node_name: str, lines: Sequence[str]) -> bytes:
    """A mail of these lines, as long as may be. Nothing of them gets into its header."""
    from email.message import EmailMessage  # what a hundred passes do without

    shown = [printable(line)[:MOST_CHARACTERS] for line in lines[:MOST_LINES]]
    if len(lines) > MOST_LINES:
        shown.append(f"and {len(lines) - MOST_LINES} more")
    mail = EmailMessage()
    mail["From"] = mail["To"] = "root"
    count = f"{len(lines)} things" if len(lines) > 1 else "something"
    mail["Subject"] = f"pxsched on {printable(node_name)[:64]}: {count} to look at"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("\n".join([*shown, "", END]), cte="8bit")
    return mail.as_bytes()


def possible(root: Root) -> bool:
    """Whether there is a sendmail."""
    return os.access(root.path(SENDMAIL), os.X_OK)


def send(root: Root, node_name: str, lines: Sequence[str]) -> None:
    """Has it sent, and does not wait for that. Raises OSError where systemd does not start it."""
    if not possible(root):
        raise FileNotFoundError(errno.ENOENT, f"there is no /{SENDMAIL}")
    systemd.start(
        root,
        [f"/{SENDMAIL}", "-i", "root"],
        stdin=message(node_name, lines),
        description="pxsched: mail to root",
        most_s=PATIENCE_S,
    )
