"""A Proxmox API over HTTPS as far as its documentation goes: three requests, its error shapes, its logins.

Only for what a test machine cannot have. What was asked is kept in `requests`, to be asserted.
"""

import json
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

TOKEN = "admin@pve!test=00000000-aaaa-bbbb-cccc-000000000000"
USER, PASSWORD = "root@pam", "secret"
TICKET = "PVE:root@pam:6523::sig"


def make_certificate(directory: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-keyout", str(directory / "key.pem"), "-out", str(directory / "ca.pem")),
            *("-days", "2", "-subj", "/CN=pve1", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )


@dataclass
class Vm:
    node: str
    config: dict[str, str] = field(default_factory=dict)
    status: str = "stopped"
    hastate: str = ""


class ApiServer:
    """directory: with the certificate that `make_certificate` put there."""

    def __init__(self, directory: Path, vms: dict[int, Vm]) -> None:
        self.vms = vms
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.failures: dict[tuple[str, str], tuple[int, str, dict[str, str]]] = {}
        self.certificate = directory / "ca.pem"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, directory / "key.pem")
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: object) -> None:
                pass

            def _do(self) -> None:
                url = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length).decode() if length else url.query
                params = {key: values[-1] for key, values in parse_qs(text).items()}
                code, reason, body = server.answer(self, url.path, params)
                data = json.dumps(body).encode()
                self.send_response(code, reason)
                self.send_header("Content-Type", "application/json;charset=UTF-8")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = _do

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    @property
    def writes(self) -> list[tuple[str, str, dict[str, str]]]:
        return [request for request in self.requests if request[0] not in ("GET", "POST")]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, path: str, params: dict[str, str]) -> tuple:
        path = path.removeprefix("/api2/json/")
        self.requests.append((handler.command, path, params))
        if path == "access/ticket":
            if (params.get("username"), params.get("password")) != (USER, PASSWORD):
                return 401, "authentication failure", {"data": None}
            return 200, "OK", {"data": {"ticket": TICKET, "CSRFPreventionToken": "6523:csrf"}}
        if not self._logged_in(handler):
            return 401, "No ticket", {"data": None}
        if (handler.command, path) in self.failures:
            code, reason, errors = self.failures[handler.command, path]
            return code, reason, {"data": None, **({"errors": errors} if errors else {})}
        return self._data(handler.command, path, params)

    def _logged_in(self, handler: BaseHTTPRequestHandler) -> bool:
        if handler.headers.get("Authorization") == f"PVEAPIToken={TOKEN}":
            return True
        csrf = handler.command == "GET" or handler.headers.get("CSRFPreventionToken") == "6523:csrf"
        return f"PVEAuthCookie={TICKET}" in (handler.headers.get("Cookie") or "") and csrf

    def _data(self, method: str, path: str, params: dict[str, str]) -> tuple:
        if (method, path) == ("GET", "cluster/resources"):
            vms = [
                {"id": f"qemu/{vmid}", "type": "qemu", "vmid": vmid, "node": vm.node, "status": vm.status}
                | ({"hastate": vm.hastate} if vm.hastate else {})
                for vmid, vm in self.vms.items()
            ]
            return 200, "OK", {"data": [*vms, {"id": "lxc/900", "type": "lxc", "vmid": 900, "node": "pve1"}]}
        for vmid, vm in self.vms.items():
            if path == f"nodes/{vm.node}/qemu/{vmid}/config":
                if method == "GET":
                    return 200, "OK", {"data": {**vm.config, "digest": f"d{vmid}"}}
                for key in filter(None, params.get("delete", "").split(",")):
                    vm.config.pop(key, None)
                vm.config.update({k: v for k, v in params.items() if k not in ("delete", "digest")})
                return 200, "OK", {"data": None}
        return 501, f"Method '{method} /{path}' not implemented", {"data": None}
