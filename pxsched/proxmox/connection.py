"""Which way to Proxmox there is from here: a node's own API, a sandbox's, or a cluster's over HTTPS."""

import os
import re

from pxsched.errors import UserError
from pxsched.proxmox.api import TIMEOUT_S, Api, ApiError, Proxmoxer, Pvesh, hint_for, one_line
from pxsched.root import Root
from pxsched.value import Value

CLUSTER_CA = "etc/pve/pve-root-ca.pem"


def local() -> Api:
    """The API of this node."""
    try:
        import proxmoxer
        import proxmoxer.backends.local
    except ImportError:  # not installed; or older than its local backend
        return Pvesh()
    return Proxmoxer(proxmoxer.ProxmoxAPI(backend="local", timeout=TIMEOUT_S))


class Login(Value):
    """How to reach a cluster over HTTPS. host: name, name:port or [IPv6]:port. token: USER@REALM!NAME=SECRET.

    ca: file with the authority to trust besides the system's; None for the cluster's own where it is here.
    """

    host: str
    token: str | None = None
    user: str | None = None
    password: str | None = None
    ca: str | None = None


def remote(login: Login, root: Root = Root()) -> Api:
    """The API of another machine. Raises UserError for a bad login and ApiError when it cannot be reached."""
    try:
        from proxmoxer import ProxmoxAPI
        from proxmoxer.backends import https
    except (ImportError, SystemExit) as error:  # 1.2.0 ends the process when `requests` is missing
        raise UserError(
            "--host needs proxmoxer and requests", hint="apt-get install python3-proxmoxer python3-requests"
        ) from error
    if login.ca and not os.path.exists(login.ca):
        raise UserError(f"--ca {login.ca}: no such file")
    here = root.path(CLUSTER_CA)
    verify: str | bool = login.ca or (here if os.path.exists(here) else True)
    try:
        client = ProxmoxAPI(login.host, verify_ssl=verify, timeout=TIMEOUT_S, **_credentials(login))
    except (https.AuthenticationError, OSError) as error:
        text = str(error)
        raise ApiError(f"{login.host}: {one_line(text)}", hint=hint_for(0, text)) from error
    return Proxmoxer(client, f"{login.host}: ")


def _credentials(login: Login) -> dict[str, str]:
    if login.token:
        match = re.fullmatch(r"([^!\s]+@[^!\s@]+)!([\w.-]+)=(\S+)", login.token, re.ASCII)
        if match is None:
            raise UserError("the token is not of the form USER@REALM!NAME=SECRET")
        return {"user": match[1], "token_name": match[2], "token_value": match[3]}
    if login.user and login.password:
        return {"user": login.user, "password": login.password}
    raise UserError("--host needs --token, or --user and a password")
