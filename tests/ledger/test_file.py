"""The ledger: who holds what and what everything was before, readable after any crash."""

import json
import os
import random
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.errors import UserError
from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import Entry, Lease
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root
from pxsched.settings.policy import EmulatorPlace, Fair, MemoryMode, Policy, Prefer, Smt, Wish
from pxsched.value import replace

PACKAGE = str(Path(ledgers.__file__).resolve().parents[1])

MOST_EXAMPLES = 1_000


@pytest.fixture
def root(tmp_path: Path) -> Root:
    boot(tmp_path, "11111111-2222-3333-4444-555555555555")
    return Root(str(tmp_path))


def boot(base: Path, boot_id: str) -> None:
    file = base / "proc/sys/kernel/random/boot_id"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{boot_id}\n")


def claim(vmid: int = 100, **more: object) -> Claim:
    three, one = frozenset({3}), frozenset({1})
    placement = Placement(vmid, VmClass.PINNED, (three, one), three, frozenset({0}), ("as affinity says",))
    return Claim(placement, State.RUNNING, **more)  # type: ignore[arg-type]


def entry(original: str = "0-3", **more: object) -> Entry:
    return Entry(100, "vcpu", original, "3", 12345, **more)  # type: ignore[arg-type]


def fill(ledger: Ledger, claims: dict[int, Claim], journal: dict[str, Entry]) -> None:
    """Makes the ledger say this and nothing else."""
    ledger.claims.clear()
    ledger.claims.update(claims)
    ledger.journal.clear()
    ledger.journal.update(journal)


def stored(root: Root, *vmids: int, entries: int = 1) -> Ledger:
    """Saves a ledger with these VMs, and some knobs."""
    with ledgers.locked(root) as ledger:
        knobs = {f"affinity:{number},1": entry() for number in range(entries)}
        fill(ledger, {vmid: claim(vmid) for vmid in vmids}, knobs)
        ledgers.save(root, ledger)
        return ledger


def same(one: Ledger, other: Ledger) -> bool:
    return (dict(one.claims), dict(one.journal)) == (dict(other.claims), dict(other.journal))


# Writing and reading

CPUS = st.frozensets(st.integers(0, 600), max_size=9)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PROCESSES = st.none() | st.builds(Process, st.integers(1, 1 << 22), st.integers(0, 1 << 40))
POLICIES = st.builds(
    Policy,
    wish=st.sampled_from(Wish), smt=st.sampled_from(Smt), prefer=st.sampled_from(Prefer),
    cpus=st.sampled_from(["", "0-3,8"]), strict=st.booleans(), memory=st.sampled_from(MemoryMode),
    emulator=st.sampled_from(EmulatorPlace), fair=st.sampled_from(Fair), fifo=st.integers(0, 49),
    governor=st.sampled_from(["", "performance"]), starved_percent=st.floats(0, 100), balloon=st.booleans(),
)  # fmt: skip
CLAIMS = st.builds(
    Claim,
    placement=st.builds(
        Placement, st.just(0), st.sampled_from(VmClass), st.lists(CPUS, max_size=4).map(tuple), CPUS, CPUS,
        st.lists(NAMES, max_size=3).map(tuple),
    ),
    state=st.sampled_from(State), policy=POLICIES, process=PROCESSES, starter=PROCESSES, inherited=NAMES,
    signature=NAMES, source=NAMES, hookscript=NAMES, memory_mib=st.integers(0, 1 << 32),
    weight=st.integers(1, 10000), since_ns=st.integers(0, 1 << 62), load=st.none() | st.floats(0, 1000),
)  # fmt: skip
ENTRIES = st.builds(
    Entry, st.integers(0, 999_999_999), NAMES, NAMES, NAMES, st.integers(0, 1 << 62),
    st.none() | st.integers(0, 1 << 62), st.integers(0, 99), NAMES, st.booleans(),
    st.none() | st.builds(Lease, *[st.integers(0, 1 << 62)] * 3), st.integers(0, 99), st.integers(0, 1 << 62),
)  # fmt: skip


def of_vm(vmid: int, one: Claim) -> Claim:
    return replace(one, placement=replace(one.placement, vmid=vmid))


@given(
    claims=st.dictionaries(st.integers(100, 999_999_999), CLAIMS, max_size=4),
    journal=st.dictionaries(NAMES, ENTRIES, max_size=4),
)
def test_what_is_saved_is_what_is_read(effort, root, claims, journal):
    claims = {vmid: of_vm(vmid, one) for vmid, one in claims.items()}
    with ledgers.locked(root) as ledger:
        fill(ledger, claims, journal)
        ledgers.save(root, ledger)
    read = ledgers.peek(root)
    assert (dict(read.claims), dict(read.journal), read.warnings) == (claims, journal, [])


def test_without_a_file_nobody_holds_anything(root):
    assert same(ledgers.peek(root), Ledger())
    with ledgers.locked(root) as ledger:
        assert same(ledger, Ledger())


def test_a_ledger_that_says_nothing_leaves_no_file(root):
    stored(root, 100, 101)
    stored(root, entries=0)
    assert [name for name in root.list(ledgers.DIR) if name != "lock"] == []


def test_leaving_without_saving_changes_nothing(root):
    before = stored(root, 100)
    with ledgers.locked(root) as ledger:
        ledger.claims.clear()
    assert same(ledgers.peek(root), before)


def test_only_root_may_look_into_it(root):
    stored(root, 100)
    assert os.stat(root.path(ledgers.DIR)).st_mode & 0o077 == 0


def test_two_hundred_vms_are_read_in_a_moment(root):
    stored(root, *range(100, 300), entries=2000)
    before = time.process_time()
    ledgers.peek(root)
    assert time.process_time() - before < 1


# What matters to others


def of_class(vmid: int, vm_class: VmClass) -> Claim:
    one = claim(vmid)
    return replace(one, placement=replace(one.placement, vm_class=vm_class))


@pytest.mark.parametrize("before", [VmClass.SHARED, VmClass.DEDICATED, None])
def test_who_has_cpus_of_his_own_is_known_whatever_the_file_still_says(root, before):
    with ledgers.locked(root) as ledger:
        if before:
            ledger.claims[100] = of_class(100, before)
        ledger.claims[101] = of_class(101, VmClass.SHARED)
        ledgers.save(root, ledger)
    with ledgers.locked(root) as ledger:
        ledger.claims[100] = of_class(100, VmClass.DEDICATED)
        assert set(ledger.felt()) == {100}
        ledger.claims[100] = of_class(100, VmClass.SHARED)
        assert set(ledger.felt()) == set()
        del ledger.claims[100]
        assert set(ledger.felt()) == set() and [held.vmid for held in ledger.holdings()] == [101]


def test_what_others_hold_is_the_same_from_text_and_from_the_claim(root):
    one = replace(claim(100, load=0.25, memory_mib=4096, weight=50), state=State.STARTING)
    with ledgers.locked(root) as ledger:
        ledger.claims[100] = one
        (known,) = ledger.holdings()
        ledgers.save(root, ledger)
    (read,) = ledgers.peek(root).holdings()
    with ledgers.locked(root, ()) as ledger:
        (unread,) = ledger.holdings(but=101)
    assert known == read == unread and known.memory_mib == {0: 4096}


# Damage


def files(root: Root) -> tuple[Path, Path]:
    return Path(root.path(ledgers.FILE)), Path(root.path(ledgers.PREVIOUS))


DAMAGE = [
    b"", b"{", b"null", b"[]", b"{}", b'"text"', b"\0" * 500, b"\xff" * 50, b"[" * 100_000,
    b'{"schema":99,"boot_id":"","lines":0}\n', b'{"schema":2}\n', b"9" * 5000,
    b'{"schema":2,"boot_id":Infinity}\n'
    b'{"schema":1,"boot_id":"","claims":{},"journal":{}}', b'{"schema":2,"boot_id":"","lines":1}\n',
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_file_is_set_aside_and_the_generation_before_it_used(root, damage):
    before = stored(root, 100)
    stored(root, 100, 101)
    file, _ = files(root)
    file.write_bytes(damage)
    with ledgers.locked(root) as ledger:
        assert same(ledger, before)
        (warning,) = ledger.warnings
        assert "/run/pxsched/ledger.json is damaged" in warning
        assert "/run/pxsched/ledger.json.damaged" in warning and len(warning) < 300
    assert Path(f"{file}.damaged").read_bytes() == damage


@pytest.mark.parametrize("more", [-2, -1, 2])
def test_a_file_that_is_shorter_or_longer_than_it_says_is_damaged_though_its_lines_are_whole(root, more):
    before = stored(root, 100)
    stored(root, 100, 101, entries=2)
    file, _ = files(root)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:more] if more < 0 else [*lines, *lines[-more:]]))
    assert same(ledgers.peek(root), before)


def test_after_that_the_next_save_makes_it_whole_again(root):
    stored(root, 100)
    stored(root, 100, 101)
    files(root)[0].write_bytes(b"{")
    with ledgers.locked(root) as ledger:
        ledgers.save(root, ledger)
    again = ledgers.peek(root)
    assert set(again.claims) == {100} and again.warnings == []


def test_two_damaged_files_are_as_good_as_none(root):
    stored(root, 100)
    stored(root, 100, 101)
    for file in files(root):
        file.write_bytes(b"{")
    with ledgers.locked(root) as ledger:
        assert same(ledger, Ledger()) and len(ledger.warnings) == 2


def test_looking_only_leaves_the_damaged_file_where_it_is(root):
    stored(root, 100)
    files(root)[0].write_bytes(b"{")
    assert len(ledgers.peek(root).warnings) == 1
    assert files(root)[0].read_bytes() == b"{"


def test_a_crash_between_the_two_renames_loses_one_generation_at_most(root):
    before = stored(root, 100)
    stored(root, 100, 101)
    files(root)[0].unlink()
    assert same(ledgers.peek(root), before)


def test_half_a_new_file_is_never_read(root):
    before = stored(root, 100)
    Path(root.path(f"{ledgers.FILE}.new")).write_bytes(b'{"schema":2,"bo')
    assert same(ledgers.peek(root), before)
    stored(root, 101)
    assert set(ledgers.peek(root).claims) == {101}


WRONG = [0, -1, None, "", "x", "0-", [], {}, [[]], True, 1e99, "9-1", ["x"], {"cpus": "0", "count": "x"}]


def spoiled(document: object, chance: random.Random) -> object:
    """The same JSON with one value, anywhere in it, replaced by one of another kind."""
    if isinstance(document, dict) and document and chance.random() < 0.9:
        key = chance.choice(sorted(document))
        return {**document, key: spoiled(document[key], chance)}
    if isinstance(document, list) and document and chance.random() < 0.9:
        index = chance.randrange(len(document))
        return [*document[:index], spoiled(document[index], chance), *document[index + 1 :]]
    return chance.choice(WRONG)


def spoiled_line(text: str, chance: random.Random) -> str:
    """The file with one value of one line replaced: of the JSON in it, or a word of what stands before."""
    lines = text.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    fields = lines[at].rstrip("\n").split("\t")
    field = chance.randrange(len(fields))
    if fields[field].startswith(("{", "[")):
        fields[field] = json.dumps(spoiled(json.loads(fields[field]), chance))
    else:
        words = fields[field].split(" ")
        words[chance.randrange(len(words))] = str(chance.choice([*WRONG, "1e400", "9" * 30, "0-3*999999999"]))
        fields[field] = " ".join(words)
    lines[at] = "\t".join(fields) + "\n"
    return "".join(lines)


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_in_its_place_is_set_aside_and_nobody_waits_for_it(root, put):
    file, _ = files(root)
    file.parent.mkdir(parents=True)
    put(file)
    with ledgers.locked(root) as ledger:
        assert "is damaged" in ledger.warnings[0]
        assert not file.exists()


@given(seed=st.integers(0, 1 << 32))
def test_whatever_is_wrong_in_the_file_the_ledger_can_be_used(effort, root, seed):
    with ledgers.locked(root) as ledger:
        fill(
            ledger,
            {100: claim(policy=Policy(strict=True), process=Process(5, 6), load=0.5)},
            {"affinity:1,2": entry(), "affinity:3,4": entry(drifted_ns=5, drifts=1, note="x")},
        )
        ledgers.save(root, ledger)
    file, previous = files(root)
    previous.unlink(missing_ok=True)
    document = spoiled_line(file.read_text(), random.Random(seed))
    file.write_text(document)
    with ledgers.locked(root) as ledger:
        for one in ledger.journal.values():
            for name in ("plugin", "original", "wanted", "note"):
                assert isinstance(getattr(one, name), str), document
            assert type(one.owner) is int and type(one.since_ns) is int and type(one.drifts) is int
        ledger.stored = False
        ledgers.save(root, ledger)
    assert ledgers.peek(root).warnings == []


@given(data=st.binary(max_size=100), at=st.integers(0, 400))
def test_bytes_written_over_the_file_never_raise(effort, root, data, at):
    stored(root, 100)
    file, _ = files(root)
    old = file.read_bytes()
    file.write_bytes(old[:at] + data + old[at + len(data) :])
    with ledgers.locked(root) as ledger:
        fill(ledger, {}, {})
        ledgers.save(root, ledger)


# Boots


def test_a_ledger_of_an_earlier_boot_is_discarded(root, tmp_path):
    stored(root, 100, 101)
    boot(tmp_path, "99999999-2222-3333-4444-555555555555")
    with ledgers.locked(root) as ledger:
        assert same(ledger, Ledger()) and ledger.warnings == []


# Where it cannot be written


def test_a_root_where_nothing_can_be_made_is_an_error_for_the_user():
    with pytest.raises(UserError, match="cannot use"), ledgers.locked(Root("/proc")):
        pass


def test_a_file_in_the_place_of_the_directory_is_an_error_for_the_user(root, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pxsched").write_text("")
    with pytest.raises(UserError, match="cannot use"), ledgers.locked(root):
        pass


def test_a_full_disk_is_an_error_for_the_user_and_the_old_file_stays(root):
    before = stored(root, 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ledgers.locked(root) as ledger:
        ledger.claims.update({vmid: claim(vmid) for vmid in range(100, 200)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(UserError, match=r"cannot write .*ledger.json"):
                ledgers.save(root, ledger)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(ledgers.peek(root), before)
    assert not Path(root.path(f"{ledgers.FILE}.new")).exists()


# In a mount namespace of its own: a /run that is read-only, and one that is full.
MOUNTED = """
import subprocess, sys
from pathlib import Path
from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Entry, Lease
from pxsched.errors import UserError
from pxsched.root import Root

base, how = sys.argv[1], sys.argv[2]
run = f"{base}/run"
Path(run).mkdir(exist_ok=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", run], check=True)
if how == "full":
    try:
        Path(run, "filler").write_bytes(b"x" * (1 << 20))
    except OSError:
        pass
else:
    if how == "read-only later":
        with ledgers.locked(Root(base)):
            pass
        Path(run, "pxsched/ledger.json").write_text("{")
    subprocess.run(["mount", "-o", "remount,ro", run], check=True)
try:
    with ledgers.locked(Root(base), patience_s=5) as ledger:
        ledger.journal["affinity:1,1"] = Entry(100, "x" * 20000, "", "", 0)
        ledgers.save(Root(base), ledger)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("how", ["read-only", "read-only later", "full"])
def test_a_run_that_cannot_be_written_is_an_error_for_the_user(root, how):
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", MOUNTED, root.base, how],
        capture_output=True, text=True, timeout=30, env={**os.environ, "PYTHONPATH": PACKAGE},
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    assert done.stderr == ""
    assert "Read-only file system" in done.stdout or "No space left" in done.stdout


# Others at the same time

ADD = textwrap.dedent(
    """
    import sys
    from pxsched.ledger import file as ledgers
    from pxsched.ledger.journal import Entry, Lease
    from pxsched.root import Root
    root = Root(sys.argv[1])
    for _ in range(int(sys.argv[2])):
        with ledgers.locked(root, patience_s=60) as ledger:
            count = int(ledger.journal["count"].wanted) if ledger.journal else 0
            ledger.journal["count"] = Entry(0, "", "", str(count + 1), 0)
            ledgers.save(root, ledger)
    """
)


def test_processes_exclude_each_other(root):
    line = [sys.executable, "-c", ADD, root.base, "25"]
    env = {**os.environ, "PYTHONPATH": PACKAGE}
    children = [subprocess.Popen(line, env=env) for _ in range(4)]
    while any(child.poll() is None for child in children):
        assert ledgers.peek(root).warnings == [], "a reader without the lock never sees half a file"
    assert [child.returncode for child in children] == [0] * 4
    assert ledgers.peek(root).journal["count"].wanted == "100"


HOLD = textwrap.dedent(
    """
    import sys, time
    from pxsched.ledger import file as ledger
    from pxsched.root import Root
    with ledger.locked(Root(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
    """
)


def test_a_lock_that_is_held_too_long_is_an_error_and_a_killed_holder_leaves_it(root):
    env = {**os.environ, "PYTHONPATH": PACKAGE}
    line = [sys.executable, "-c", HOLD, root.base]
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        said = rf"locked by process {holder.pid} \(.*\) for more than 0.1 s"
        with pytest.raises(UserError, match=said), ledgers.locked(root, patience_s=0.1):
            pass
        holder.kill()
        holder.wait()
        with ledgers.locked(root, patience_s=5):
            pass


def test_the_lock_is_given_back_when_the_work_fails(root):
    with pytest.raises(KeyError), ledgers.locked(root):
        raise KeyError
    with ledgers.locked(root, patience_s=1):
        pass
