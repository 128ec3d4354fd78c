"""Enables a VM over HTTPS with the proxmoxer of this Debian. Arguments: directory of the certificate."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, "/checkout/tests/optin")

from api_server import PASSWORD, TOKEN, USER, ApiServer, Vm

server = ApiServer(Path(sys.argv[1]), {100: Vm("pve1", {"name": "web"})})
login = ["--host", server.host, "--ca", str(server.certificate)]
environment = {**os.environ, "PXSCHED_PASSWORD": PASSWORD}
for words in (
    ["enable", "100", *login, "--user", USER],
    ["list", *login, "--token", TOKEN],
    ["list", *login, "--token", TOKEN + "x"],
    ["list", "--host", server.host, "--token", TOKEN],
):
    done = subprocess.run(["pxsched", *words], env=environment, capture_output=True, text=True)
    print(done.returncode, done.stdout + done.stderr)
print(server.writes)
