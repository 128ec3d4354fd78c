"""Proxmox's API over HTTPS for migrations, on a cluster as files: what it takes, does and answers.

Shapes: PVE::API2::Qemu (migrate), ::Tasks, ::HA::Resources. `breaks` says how a move goes wrong.
"""

import json
import threading

from tests.optin.api_server import ApiServer

UPID = "UPID:{node}:00001234:00005678:69260000:{kind}:{vmid}:root@pam:"


class Proxmox(ApiServer):
    """cluster: a tests.cluster.conftest.Cluster. exits: exit status by VMID; lost: 595 so many times.

    answers: what a request gets instead; local_disks, blocked: what the precondition says.
    """

    def __init__(self, directory, cluster):
        super().__init__(directory, {})
        self.cluster = cluster
        self.answers = {}
        self.exits: dict[int, str] = {}
        self.lost = 0
        self.local_disks: list[dict] = []
        self.blocked: dict[str, dict] = {}
        self.stopped: set[int] = set()
        self.ha_fails: set[int] = set()
        self.ha_ignores: set[int] = set()
        self.tasks: dict[str, tuple[int, str, str]] = {}
        self.polls = 0
        self.on_poll = lambda: None
        self.lock = threading.Lock()

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The requests that change something."""
        return [(method, path) for method, path, _ in self.requests if method == "POST"]

    def _data(self, method, path, params):
        with self.lock:
            if (method, path) in self.answers:
                return self.answers[method, path]
            words = path.split("/")
            if words[:1] == ["nodes"] and words[2:3] == ["qemu"] and words[4:] == ["migrate"]:
                vmid, node = int(words[3]), words[1]
                return self._precondition(vmid) if method == "GET" else self._migrate(node, vmid, params)
            if words[2:3] == ["tasks"] and words[4:] == ["status"]:
                return self._status(words[3].replace("%3A", ":"))
            if words[:3] == ["cluster", "ha", "resources"] and words[4:] == ["migrate"]:
                return self._ha(int(words[3].replace("%3A", ":").partition(":")[2]), params["node"])
            return super()._data(method, path, params)

    def _precondition(self, vmid):
        others = {name: self.blocked.get(name, {}) for name in self.cluster.names}
        runs = int(vmid not in self.stopped)
        data = {"running": runs, "allowed_nodes": self.cluster.names, "not_allowed_nodes": others,
                "local_disks": self.local_disks, "local_resources": []}  # fmt: skip
        return 200, "OK", {"data": data}

    def _migrate(self, node, vmid, params):
        task = UPID.format(node=node, kind="qmigrate", vmid=vmid)
        self.tasks[task] = (vmid, node, params["target"])
        return 200, "OK", {"data": task}

    def _status(self, task):
        self.polls += 1
        self.on_poll()
        if self.lost:
            self.lost -= 1
            return 595, "No route to host", {"data": None}
        vmid, source, target = self.tasks[task]
        if self.polls % 3:
            return 200, "OK", {"data": {"status": "running", "upid": task}}
        status = self.exits.get(vmid, "OK")
        if status.startswith(("OK", "WARNINGS")):
            self.cluster.move(vmid, source, target)
        return 200, "OK", {"data": {"status": "stopped", "exitstatus": status, "upid": task}}

    def _ha(self, vmid, target):
        source = next(name for name in self.cluster.names
                      if (self.cluster.pve / f"nodes/{name}/qemu-server/{vmid}.conf").exists())  # fmt: skip
        if vmid not in self.ha_ignores:
            threading.Thread(target=self._manager, args=(vmid, source, target), daemon=True).start()
        return 200, "OK", {"data": {"sid": f"vm:{vmid}", "requested-node": target}}

    def _manager(self, vmid, source, target):
        def state(name, node):
            service = {f"vm:{vmid}": {"state": name, "node": node, "target": target}}
            self.cluster.put("ha/manager_status", json.dumps({"service_status": service}))

        state("started", source)
        state("migrate", source)
        threading.Event().wait(0.1)
        if vmid in self.ha_fails:
            state("started", source)
            return
        self.cluster.move(vmid, source, target)
        state("started", target)
