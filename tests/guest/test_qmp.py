"""QMP with peers on real sockets that are in nobody's hands but a tenant's."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.guest import qmp
from pxsched.guest.process import Role, Thread, with_vcpus
from pxsched.guest.qmp import Qmp, QmpBusy, QmpError, QmpGone, QmpProtocol, QmpRefused
from pxsched.root import Root

pytestmark = pytest.mark.measures

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}, "capabilities": []}}
PATIENCE_S = 0.3
# A busy machine may take this much longer; a peer that hangs us takes for ever.
BOUND_S = 5.0

Talk = Callable[[socket.socket], None]


def say(peer: socket.socket, *messages: object) -> None:
    peer.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))


def hear(peer: socket.socket) -> dict[str, object]:
    line = b""
    while not line.endswith(b"\n"):
        byte = peer.recv(1)
        if not byte:
            raise ConnectionError
        line += byte
    heard = json.loads(line)
    assert isinstance(heard, dict)
    return heard


def greet(peer: socket.socket) -> None:
    say(peer, GREETING)
    assert hear(peer) == {"execute": "qmp_capabilities"}
    say(peer, {"return": {}})


def answering(*answers: object) -> Talk:
    """A peer that greets and gives these answers."""

    def talk(peer: socket.socket) -> None:
        greet(peer)
        for answer in answers:
            hear(peer)
            say(peer, answer)
        hear(peer)

    return talk


def saying(data: bytes, *, greeted: bool = True) -> Talk:
    """A peer that answers the first command with these bytes, and then says nothing."""

    def talk(peer: socket.socket) -> None:
        if greeted:
            greet(peer)
            hear(peer)
        peer.sendall(data)
        while peer.recv(4096):
            pass

    return talk


class Peer:
    """Listens where QEMU of VM 100 would, and serves one client at a time as it does."""

    def __init__(self, base: Path) -> None:
        self.root = Root(str(base))
        directory = base / "run/qemu-server"
        directory.mkdir(parents=True, exist_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        fd = os.open(directory, os.O_PATH)
        self.listener.bind(f"/proc/self/fd/{fd}/100.qmp")  # a test's path may be too long for a socket's
        os.close(fd)
        self.listener.listen(1)
        self.threads: list[threading.Thread] = []

    def serve(self, talk: Talk) -> Root:
        def run() -> None:
            with contextlib.suppress(OSError):
                client, _ = self.listener.accept()
                with client:
                    client.settimeout(30)
                    talk(client)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()
        return self.root

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path)
    yield peer
    peer.close()


def ask(root: Root, command: str = "query-status", patience_s: float = PATIENCE_S) -> qmp.Json:
    with Qmp(root, 100, patience_s=patience_s) as conversation:
        return conversation.execute(command)


@contextlib.contextmanager
def soon() -> Iterator[None]:
    before = time.monotonic()
    yield
    assert time.monotonic() - before < BOUND_S


# A peer as it should be


def test_a_command_is_sent_with_its_arguments_and_answered(peer):
    heard = []

    def talk(client: socket.socket) -> None:
        greet(client)
        heard.append(hear(client))
        say(client, {"return": [1, {"a": None}]})

    with Qmp(peer.serve(talk), 100, patience_s=BOUND_S) as conversation:
        assert conversation.execute("qom-get", {"path": "/machine", "property": "x"}) == [1, {"a": None}]
    assert heard == [{"execute": "qom-get", "arguments": {"path": "/machine", "property": "x"}}]


def test_events_between_are_passed_over(peer):
    event = {"event": "RTC_CHANGE", "data": {"offset": 0}, "timestamp": {"seconds": 1, "microseconds": 2}}

    def talk(client: socket.socket) -> None:
        say(client, GREETING, event)
        hear(client)
        say(client, event, {"return": {}}, event)
        hear(client)
        say(client, event, event, {"return": "done"}, event)

    assert ask(peer.serve(talk), patience_s=BOUND_S) == "done"


def test_what_qemu_refuses_is_an_error_with_its_class(peer):
    root = peer.serve(answering({"error": {"class": "DeviceNotActive", "desc": "No balloon"}}))
    with pytest.raises(QmpRefused, match="No balloon") as caught:
        ask(root, "query-balloon", BOUND_S)
    assert caught.value.error_class == "DeviceNotActive"


def test_a_conversation_has_at_most_three_commands(peer):
    root = peer.serve(answering(*[{"return": number} for number in range(3)]))
    with Qmp(root, 100, patience_s=BOUND_S) as conversation:
        assert [conversation.execute("query-name") for _ in range(3)] == [0, 1, 2]
        with pytest.raises(AssertionError):
            conversation.execute("query-name")


def test_the_connection_is_closed_at_the_end_so_that_proxmox_is_served(peer):
    closed = threading.Event()

    def talk(client: socket.socket) -> None:
        greet(client)
        hear(client)
        say(client, {"return": {}})
        if client.recv(1) == b"":
            closed.set()

    ask(peer.serve(talk), patience_s=BOUND_S)
    assert closed.wait(BOUND_S)


def test_the_directory_may_lie_deeper_than_a_sockets_address_can_say(tmp_path):
    base = tmp_path / ("d" * 100) / ("e" * 100)
    peer = Peer(base)
    before = os.listdir("/proc/self/fd")
    assert len(str(base)) > 200
    assert ask(peer.serve(answering({"return": 7})), patience_s=BOUND_S) == 7
    peer.close()
    assert len(os.listdir("/proc/self/fd")) <= len(before)


# Peers that are gone, busy or stuck


def test_without_a_socket_qemu_is_gone(tmp_path):
    with pytest.raises(QmpGone, match="no QMP socket"):
        ask(Root(str(tmp_path)))


def test_a_file_that_is_no_socket_is_no_qemu(tmp_path):
    (tmp_path / "run/qemu-server").mkdir(parents=True)
    (tmp_path / "run/qemu-server/100.qmp").write_text("x")
    with pytest.raises(QmpGone):
        ask(Root(str(tmp_path)))


def test_a_socket_nobody_listens_on_is_no_qemu(peer):
    peer.close()
    with pytest.raises(QmpGone):
        ask(peer.root)


def test_without_a_greeting_another_client_is_being_served(peer):
    with soon(), pytest.raises(QmpBusy, match="another client"):
        ask(peer.serve(saying(b"", greeted=False)))


def test_a_full_queue_of_connections_is_busy_too(peer):
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(f"{peer.root.base}/run/qemu-server/100.qmp")
        with soon(), pytest.raises(QmpBusy):
            ask(peer.root)


def test_a_peer_that_never_answers_takes_no_more_than_the_patience(peer):
    with soon(), pytest.raises(QmpBusy, match="no answer to query-status"):
        ask(peer.serve(saying(b"")))


def test_one_byte_at_a_time_takes_no_more_than_the_patience(peer):
    def talk(client: socket.socket) -> None:
        greet(client)
        while True:
            client.sendall(b" ")
            time.sleep(0.01)

    with soon(), pytest.raises(QmpBusy):
        ask(peer.serve(talk))


def test_endless_events_take_no_more_than_the_patience(peer):
    def talk(client: socket.socket) -> None:
        greet(client)
        while True:
            client.sendall(b'{"event": "STOP"}\n' * 100)

    with soon(), pytest.raises(QmpBusy):
        ask(peer.serve(talk))


def test_the_patience_is_for_the_whole_conversation(peer):
    def talk(client: socket.socket) -> None:
        greet(client)
        while True:
            hear(client)
            time.sleep(0.2)
            say(client, {"return": 1})

    with soon(), pytest.raises(QmpBusy), Qmp(peer.serve(talk), 100, patience_s=0.5) as conversation:
        for _ in range(3):
            conversation.execute("query-name")


@pytest.mark.parametrize("moment", ["greeting", "capabilities", "half an answer", "answer"])
def test_a_peer_that_closes_midway_is_gone(peer, moment):
    def talk(client: socket.socket) -> None:
        if moment == "greeting":
            return
        say(client, GREETING)
        hear(client)
        if moment == "capabilities":
            return
        say(client, {"return": {}})
        hear(client)
        if moment == "half an answer":
            client.sendall(b'{"return": [1, ')

    with soon(), pytest.raises(QmpGone):
        ask(peer.serve(talk), patience_s=BOUND_S)


# Peers that talk nonsense


def test_a_line_of_ten_megabytes_is_not_read_to_its_end(peer):
    sent = []

    def talk(client: socket.socket) -> None:
        greet(client)
        hear(client)
        for _ in range(160):
            client.sendall(b"x" * 65536)
            sent.append(65536)

    with soon(), pytest.raises(QmpProtocol, match="more than"):
        ask(peer.serve(talk), patience_s=BOUND_S)
    assert sum(sent) < 4 * qmp.MAX_LINE_BYTES


DEEP = [100, 900, 5_000, 100_000, 400_000]


@pytest.mark.parametrize("depth", DEEP)
@pytest.mark.parametrize("where", ['{"return": %s}', '{"error": %s}', '{"error": {"class": %s}}', "%s"])
def test_deeply_nested_json_does_not_crash(peer, where, depth):
    data = (where % ("[" * depth + "]" * depth)).encode() + b"\n"
    with soon(), contextlib.suppress(QmpError):
        ask(peer.serve(saying(data)), patience_s=BOUND_S)


@pytest.mark.parametrize("depth", DEEP[:3])
def test_deeply_nested_lists_where_vcpus_should_be_do_not_crash(depth):
    deep: qmp.Json = []
    for _ in range(depth):
        deep = [deep]
    for answer in (deep, [{"cpu-index": deep, "thread-id": 1}], [{"cpu-index": 0, "thread-id": deep}]):
        with pytest.raises(QmpProtocol):
            qmp.vcpu_threads(answer)


@pytest.mark.parametrize(
    "line",
    [b"", b"null", b"1", b'"text"', b"[]", b"{}", b'{"return"', b'{"id": 1}', b"{]", b"\xff\xfe", b"\0",
     b"HTTP/1.1 200", b'{"return": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_what_is_not_qmp_is_said_to_be_not_qmp(peer, line):
    with soon(), pytest.raises(QmpProtocol):
        ask(peer.serve(saying(line + b"\n")), patience_s=BOUND_S)


@pytest.mark.parametrize("line", [b"null", b"{}", b'{"return": {}}', b'["QMP"]', b"SSH-2.0-x", b'"QMP"'])
def test_a_greeting_of_something_else_is_refused(peer, line):
    with soon(), pytest.raises(QmpProtocol):
        ask(peer.serve(saying(line + b"\n", greeted=False)), patience_s=BOUND_S)


@pytest.mark.parametrize("error", [None, 1, "text", [], {}, {"class": 1, "desc": []}, {"class": "x" * 99999}])
def test_an_error_of_any_shape_is_an_error_of_bounded_length(peer, error):
    with pytest.raises(QmpRefused) as caught:
        ask(peer.serve(answering({"error": error})), patience_s=BOUND_S)
    assert len(str(caught.value)) < 300


# What it says about threads


def vcpu(index: object, tid: object) -> dict[str, object]:
    return {"cpu-index": index, "thread-id": tid, "qom-path": "/machine/unattached/device[0]"}


def test_vcpus_are_told_by_thread_and_one_thread_may_run_several():
    assert qmp.vcpu_threads([vcpu(0, 501), vcpu(1, 502)]) == {501: (0,), 502: (1,)}
    assert qmp.vcpu_threads([vcpu(0, 501), vcpu(1, 501)]) == {501: (0, 1)}


@pytest.mark.parametrize(
    "answer",
    [None, 1, "x", {}, [1], [None], [{}], [vcpu("0", 1)], [vcpu(0, "1")], [vcpu(-1, 1)], [vcpu(8192, 1)],
     [vcpu(0, 0)], [vcpu(0, -5)], [vcpu(True, 1)], [vcpu(0, True)], [vcpu(0.0, 1)], [vcpu(0, 501), []]],
)  # fmt: skip
def test_vcpus_of_the_wrong_type_are_refused(answer):
    with pytest.raises(QmpProtocol):
        qmp.vcpu_threads(answer)


def test_a_qemu_that_names_other_processes_threads_gains_nothing(peer):
    own = (Thread(500, 1, "kvm"), Thread(501, 1, "CPU 0/KVM", Role.VCPU, (0,)))
    vcpus = [vcpu(0, 501), vcpu(1, 1), vcpu(2, os.getpid())]
    root = peer.serve(answering({"return": vcpus}))
    with Qmp(root, 100, patience_s=BOUND_S) as conversation:
        vcpus = qmp.vcpu_threads(conversation.execute("query-cpus-fast"))
    assert with_vcpus(own, vcpus) == own


# Rubbish

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["cpu-index", "thread-id", "return", "error", "event", "x"]), inner)
    ),
    max_leaves=10,
)


@given(answer=JSON)
def test_any_json_is_threads_or_refused(effort, answer):
    with contextlib.suppress(QmpProtocol):
        for tid, indexes in qmp.vcpu_threads(answer).items():
            assert tid > 0 and all(0 <= index < 8192 for index in indexes)


# The many examples share one listening socket and one thread that serves them.


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Root, list[bytes]]]:
    """A peer that says the bytes in the list, whoever connects, and closes."""
    peer = Peer(tmp_path_factory.mktemp("babbler"))
    words = [b""]

    def run() -> None:
        while True:
            try:
                client, _ = peer.listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.sendall(words[0])
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass

    threading.Thread(target=run, daemon=True).start()
    yield peer.root, words
    peer.listener.shutdown(socket.SHUT_RDWR)
    peer.close()


LINES = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())
GREETED = b'{"QMP": {}}\n{"return": {}}\n'


@given(prefix=st.sampled_from([b"", b'{"QMP": {}}\n', GREETED]), lines=st.lists(LINES, max_size=4))
def test_any_bytes_are_answered_with_a_value_or_a_qmp_error(effort, babbler, prefix, lines):
    root, words = babbler
    words[0] = prefix + b"\n".join(lines)
    with contextlib.suppress(QmpError):
        ask(root, patience_s=BOUND_S)
