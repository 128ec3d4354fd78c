"""What a guest's agent says of stolen time, by a peer that speaks as the agent does, and some that do not."""

import json
import socket
import threading
from contextlib import contextmanager

import pytest

from pxsched.guest import agent
from pxsched.guest.agent import Times
from pxsched.guest.qmp import QmpBusy, QmpGone, QmpProtocol, QmpRefused
from pxsched.root import Root

CPU = {"type": "linux", "cpu": 0, "user": 100, "nice": 0, "system": 50, "idle": 800, "iowait": 0,
       "irq": 0, "softirq": 0, "steal": 50, "guest": 90, "guestnice": 0}  # fmt: skip


@contextmanager
def peer(tmp_path, answers, *, stale=(), sync=True):
    """answers: what it says to guest-get-cpustats. stale: what an earlier client did not wait for."""
    directory = tmp_path / "run/qemu-server"
    directory.mkdir(parents=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(directory / "100.qga"))
    server.listen()

    def serve():
        connection, _ = server.accept()
        with connection:
            for line in stale:
                connection.sendall(json.dumps(line).encode() + b"\n")
            for line in connection.makefile():
                request = json.loads(line)
                if request["execute"] == "guest-sync":
                    if not sync:
                        continue
                    answer = {"return": request["arguments"]["id"]}
                else:
                    answer = answers
                connection.sendall(json.dumps(answer).encode() + b"\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Root(str(tmp_path))
    server.close()
    thread.join(2)


def test_the_steal_of_all_cpus_is_added_up(tmp_path):
    with peer(tmp_path, {"return": [CPU, {**CPU, "cpu": 1, "steal": 150}]}) as root:
        assert agent.times(root, 100) == Times(200, 2100)


def test_answers_that_others_left_are_passed_over(tmp_path):
    stale = [{"return": 7}, {"return": [{"steal": 1}]}]
    with peer(tmp_path, {"return": [CPU]}, stale=stale) as root:
        assert agent.times(root, 100) == Times(50, 1000)


def test_a_guest_that_is_no_linux_and_an_old_agent_say_nothing(tmp_path):
    with peer(tmp_path, {"error": {"class": "CommandNotFound", "desc": "unknown"}}) as root, pytest.raises(
        QmpRefused
    ):
        agent.times(root, 100)


def test_a_silent_agent_costs_half_a_second(tmp_path):
    with peer(tmp_path, {}, sync=False) as root, pytest.raises(QmpBusy):
        agent.times(root, 100)


def test_without_an_agent_there_is_no_steal(tmp_path):
    (tmp_path / "run/qemu-server").mkdir(parents=True)
    with pytest.raises(QmpGone):
        agent.times(Root(str(tmp_path)), 100)


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, [1], [{}], [{**CPU, "steal": -1}], [{**CPU, "steal": True}], [{**CPU, "steal": 1 << 70}],
     [CPU] * 8193],
)  # fmt: skip
def test_a_guest_that_lies_about_the_form_is_not_believed(answer):
    with pytest.raises(QmpProtocol):
        agent.parse(answer)
