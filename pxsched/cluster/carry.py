"""Carrying out a plan: one move after the other, through Proxmox's API or, for HA's guests, through HA.

Each move is checked once more before it is begun, with a fresh look and by Proxmox's own precondition; it is
followed to its end; the first that fails ends the run. What runs when we are interrupted is left to run.
Rules: PVE::API2::Qemu (migrate_vm), PVE::API2::Tasks, PVE::API2::HA::Resources; HA's own status file.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pxsched import stored
from pxsched.cluster import cputype, ha, planner
from pxsched.cluster.board import Move
from pxsched.cluster.known import Known
from pxsched.errors import UserError
from pxsched.proxmox import cluster
from pxsched.proxmox.api import Api, ApiError, Method
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import Value

# A task's node that does not answer for so long is given up; its task goes on.
LOST_S = 60.0
# HA's manager takes a wish within a round of some ten seconds, if it has no other job for the node.
HA_QUEUE_S = 180.0
OK, WARNINGS = "OK", "WARNINGS"


class Pace(Value):
    """How often we look, and for how long: in tests it is faster."""

    poll_s: float = 2.0
    lost_s: float = LOST_S
    ha_queue_s: float = HA_QUEUE_S


class Carrier:
    """look: a fresh look at the cluster. tell: says a line."""

    def __init__(
        self, look: Callable[[], Known], api: Api, tell: Callable[[str], None], pace: Pace = Pace()
    ) -> None:
        self._look, self._api, self._tell, self._pace = look, api, tell, pace

    def carry_out(self, moves: Sequence[Move]) -> None:
        """Makes the moves. Raises UserError at the first that cannot be made, or fails."""
        for number, move in enumerate(moves):
            try:
                self._make(move)
            except UserError as error:
                done = f"{number} of {len(moves)} moves are made, none was begun after it"
                text = f"VM {move.vmid} to {move.target}: {error.message}; {done}"
                raise UserError(text, hint=error.hint) from error
        self._tell(f"{len(moves)} of {len(moves)} moves are made")

    def _make(self, move: Move) -> None:
        known = self._look()
        root = known.view.root
        self._check(known, move)
        local_disks = self._precondition(move)
        self._cpu_type(known, move)
        self._tell(f"VM {move.vmid}: {move.source} -> {move.target}")
        if move.ha:
            self._through_ha(root, move)
        else:
            self._migrate(move, local_disks)
        there = self._look().view.places.get(move.vmid)
        if there != move.target:
            raise UserError(f"its migration has ended, and it is on {there or 'no node'}")

    def _check(self, known: Known, move: Move) -> None:
        """What Proxmox does not ask, on what is known now. Raises UserError."""
        if not cluster.quorate(known.view.root):
            raise UserError("the cluster has no quorum", hint="nothing can be moved until it has")
        for name in (move.source, move.target):
            if name in known.unusable or name not in known.usable:
                raise UserError(f"{name}: {known.unusable.get(name, 'it is gone')}")
        if known.view.places.get(move.vmid) != move.source:
            raise UserError(f"it is not on {move.source} any more")
        known.stopped(move.source)
        if (move.vmid in known.vms) != (move.to is not None):
            raise UserError("it was started, or stopped, since the plan was made")
        if known.ha.manages(move.vmid) != move.ha:
            raise UserError("it came to HA, or left it, since the plan was made")
        if move.target in known.ha.away:
            raise UserError(f"{move.target} is in maintenance")
        sheets = known.sheets()
        verdict = known.verdict(move.vmid, move.target, known.view.places)
        problem = "; ".join(text for text in (*verdict.against, verdict.offline) if text)
        problem = problem or planner.executable(sheets, [move], known)
        if problem:
            raise UserError(f"this is no longer so as it was planned: {problem}")

    def _precondition(self, move: Move) -> bool:
        """Asks Proxmox. Returns whether local disks have to be copied. Raises UserError."""
        path = f"nodes/{move.source}/qemu/{move.vmid}/migrate"
        answer = self._api.call(Method.GET, path, {"target": move.target})
        said: Mapping[str, Any] = answer if isinstance(answer, dict) else {}
        against = said.get("not_allowed_nodes")
        problem = against.get(move.target) if isinstance(against, dict) else None
        if problem:
            raise UserError(f"Proxmox does not allow it: {_words(problem)}")
        if said.get("local_resources"):
            raise UserError(f"Proxmox does not allow it: local resources {_words(said['local_resources'])}")
        runs = move.to is not None
        if bool(said.get("running", runs)) != runs:
            raise UserError("it was started, or stopped, since the plan was made")
        return bool(said.get("local_disks"))

    def _cpu_type(self, known: Known, move: Move) -> None:
        """Whether Proxmox on the target knows the VM's type: one that is older may not. Raises UserError."""
        view = known.view
        wanted = cputype.parse(view.vm(move.vmid).options.get("cpu", ""), view.surroundings.cpu_models)
        if wanted.name == cputype.DEFAULT:
            return
        answer = self._api.call(Method.GET, f"nodes/{move.target}/capabilities/qemu/cpu")
        listed = answer if isinstance(answer, list) else []
        names = {one.get("name") for one in listed if isinstance(one, dict)}
        if names and wanted.name not in names:
            raise UserError(f"Proxmox on {move.target} knows no CPU type {wanted.name[:40]}")

    def _migrate(self, move: Move, local_disks: bool) -> None:
        params = {"target": move.target}
        if move.to is not None:
            params |= {"online": "1"} | ({"with-local-disks": "1"} if local_disks else {})
        task = self._api.call(Method.CREATE, f"nodes/{move.source}/qemu/{move.vmid}/migrate", params)
        if not isinstance(task, str) or not task.startswith("UPID:"):
            raise UserError(f"Proxmox began no task: {stored.shown(task)}")
        try:
            status = self._end_of(f"nodes/{move.source}/tasks/{task}/status", task)
        except KeyboardInterrupt:
            self._tell(f"VM {move.vmid} is left to its migration: {task}")
            raise
        if status.startswith(WARNINGS):
            self._tell(f"VM {move.vmid}: moved, with warnings: see the log of {task}")
        elif status != OK:
            raise UserError(f"its task failed: {status[:200]}", hint=f"see the log of {task}")

    def _end_of(self, path: str, task: str) -> str:
        """The task's exit status, once it has one. Raises UserError when its node answers no more."""
        heard_s = time.monotonic()
        while True:
            try:
                answer = self._api.call(Method.GET, path)
                heard_s = time.monotonic()
            except ApiError as error:
                if time.monotonic() - heard_s > self._pace.lost_s:
                    raise UserError(f"{error.message}; its task goes on", hint=f"see {task}") from error
                answer = None
            if isinstance(answer, dict) and answer.get("status") == "stopped":
                return str(answer.get("exitstatus", "unknown"))
            time.sleep(self._pace.poll_s)

    def _through_ha(self, root: Root, move: Move) -> None:
        """HA's task says OK when the wish is queued; what comes of it is in HA's own status."""
        sid = ha.sid_of(move.vmid)
        answer = self._api.call(Method.CREATE, f"cluster/ha/resources/{sid}/migrate", {"node": move.target})
        blocking = answer.get("blocking-resources") if isinstance(answer, dict) else None
        if blocking:
            raise UserError(f"HA will not: {_words(blocking)} keeps it")
        asked_s, moving = time.monotonic(), False
        try:
            while True:
                state, node = _service(root, sid)
                if state == "started" and node == move.target:
                    return
                if state == "error":
                    raise UserError("HA holds it in an error", hint=f"ha-manager status; {sid}")
                if moving and state == "started":
                    raise UserError("HA's migration failed", hint=f"see the log of its task on {move.source}")
                moving = moving or state in ("migrate", "relocate")
                if not moving and time.monotonic() - asked_s > self._pace.ha_queue_s:
                    raise UserError(
                        "HA has not taken the wish", hint="does its manager run? ha-manager status"
                    )
                time.sleep(self._pace.poll_s)
        except KeyboardInterrupt:
            self._tell(f"VM {move.vmid} is left to HA, which was asked to move it to {move.target}")
            raise


def _service(root: Root, sid: str) -> tuple[str, str]:
    """HA's state of a guest, and the node it counts it to; empty when that cannot be read just now."""
    data = root.read_bytes(f"{ha.DIR}/manager_status")
    try:
        said = stored.table(stored.table(stored.parse(data or b"{}")).get("service_status") or {})
        one = stored.table(said.get(sid) or {})
        return stored.text(one.get("state", "")), stored.text(one.get("node", ""))
    except Damaged:
        return "", ""


def _words(problem: object) -> str:
    """What Proxmox says, in one line: `unavailable_storages: local-zfs`."""
    if isinstance(problem, dict):
        return "; ".join(f"{str(key).replace('_', ' ')}: {_words(value)}" for key, value in problem.items())
    if isinstance(problem, list):
        return ", ".join(map(_words, problem))
    return str(problem)[:80]
