"""`-smp` in a VM's `args`: as Perl splits it, and as QEMU understands it."""

import json
import random
import shutil
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.guest import arguments, config
from pxsched.guest.arguments import Smp
from pxsched.guest.config import Machine

FOUR = Smp(cpus=4, maxcpus=4, sockets=1, cores=4)
USUAL = "-smp 8,sockets=1,cores=4,threads=2,maxcpus=8"


def machine(*lines: str) -> Machine:
    return config.machine(config.parse("\n".join(lines)))


def test_the_usual_way_to_give_a_guest_smt_siblings_makes_it_eight_vcpus():
    vm = machine("cores: 4", f"args: {USUAL}")
    assert (vm.vcpus, vm.sockets, vm.cores) == (8, 1, 4)
    assert vm.smp == Smp(cpus=8, maxcpus=8, sockets=1, cores=4, threads=2)
    assert vm.smp.per_socket == 8
    (warning,) = vm.warnings
    assert "8 vCPUs" in warning and "configuration says 4" in warning


def test_a_shape_of_the_same_size_changes_the_topology_alone_and_is_nothing_to_warn_of():
    vm = machine("cores: 8", "args: -smp sockets=1,dies=2,cores=2,threads=2")
    assert vm.warnings == machine("cores: 6", "args: -smp maxcpus=8,sockets=2,cores=4").warnings == ()
    assert (vm.vcpus, str(vm.smp)) == (8, "cpus=8,maxcpus=8,sockets=1,dies=2,modules=1,cores=2,threads=2")


def test_arguments_that_are_not_about_processors_change_nothing():
    assert machine("cores: 4", "args: -device smpdev -machine hmat=on") == machine("cores: 4")
    assert machine("cores: 4", "args: -smp 4,sockets=1,cores=4,maxcpus=4").warnings == ()


def test_what_qemu_refuses_leaves_the_configured_vcpus_and_is_said():
    vm = machine("cores: 4", "args: -smp threads=2")
    assert (vm.vcpus, vm.smp) == (4, None)
    (warning,) = vm.warnings
    assert warning.startswith("the VM cannot start: QEMU refuses") and "1 x 1 x 1 x 4 x 2" in warning


@pytest.mark.parametrize(
    "args, smp",
    [
        (USUAL, Smp(8, 8, 1, 4, threads=2)),
        ("--smp cpus=8,maxcpus=8", Smp(8, 8, 1, 4, threads=2)),
        ("-smp cores=2,threads=2", Smp(4, 4, 1, 2, threads=2)),
        ("-smp cores=2", Smp(4, 4, 1, 2, threads=2)),
        ("-smp 2", Smp(2, 4, 1, 4)),
        ("-smp 8,maxcpus=8 -smp threads=1,sockets=2", Smp(8, 8, 2, 4)),
        ("-smp 2 -smp 3", Smp(3, 4, 1, 4)),
        ("-smp 0x8,maxcpus=010,", Smp(8, 8, 1, 4, threads=2)),
        ("-machine smp.cpus=3,hmat=off", Smp(3, 4, 1, 4)),
        ("-M q35 -smp dies=2,cores=2", Smp(4, 4, 1, 2, dies=2)),
        ("-name 'a -smp 2' -smp \"3\"", Smp(3, 4, 1, 4)),
        ("-smp '2'", Smp(2, 4, 1, 4)),
        ("-smp clusters=1,cpus=3", Smp(3, 4, 1, 4)),
    ],
)
def test_a_later_smp_is_merged_key_by_key_as_qemu_does(args, smp, qemu):
    assert arguments.smp(args, FOUR) == smp
    assert qemu(args) == smp.cpus


@pytest.mark.parametrize(
    "args",
    ["-smp 8", "-smp threads=2", "-smp on", "-smp 4,,maxcpus=8", "-smp foo=1", "-smp 08,maxcpus=8",
     "-smp maxcpus=4,4", "-smp clusters=2,cores=2", "-smp sockets=2", "-smp cpus=", "-machine smp.cpus=5"],
)  # fmt: skip
def test_what_qemu_refuses_is_refused(args, qemu):
    with pytest.raises(ValueError):
        arguments.smp(args, FOUR)
    assert qemu(args) is None


@pytest.mark.parametrize("args", ["", "-cpu host", "-smp", "-name -smp 'open", "-device smp\\", "x-smp 8"])
def test_nothing_is_made_of_arguments_without_it(args):
    assert arguments.smp(args, FOUR) is None


@pytest.mark.parametrize(
    "args", ["-smp 8192,maxcpus=99999999", "-smp threads=4294967296", "-smp cores=0,maxcpus=8"]
)
def test_no_number_is_larger_than_any_vm_has_nor_zero(args):
    with pytest.raises(ValueError):
        arguments.smp(args, FOUR)


@pytest.fixture
def qemu():
    """How many vCPUs the QEMU of this machine starts with `-smp` as Proxmox writes it and these arguments."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.skip("no QEMU here")

    def ask(args: str) -> int | None:
        bare = f"{program} -M q35 -accel tcg -S -display none -nodefaults -qmp stdio"
        command = [*bare.split(), "-smp", "4,sockets=1,cores=4,maxcpus=4", *arguments.words(args)]
        questions = "".join(
            json.dumps({"execute": x}) for x in ("qmp_capabilities", "query-cpus-fast", "quit")
        )
        done = subprocess.run(
            command, input=questions, capture_output=True, text=True, timeout=60, check=False
        )
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        lists = [answer["return"] for answer in answers if isinstance(answer.get("return"), list)]
        assert bool(lists) == (done.returncode == 0)
        return len(lists[0]) if lists else None

    return ask


# Words


ODD = [
    "a b",
    "'a b' c",
    'a"b c"d',
    r"a\ b",
    r'"a\"b"',
    r"'a\'b'",
    "a 'b",
    'x "',
    "a\\",
    "  a  ",
    "''",
    "a ''b",
    "\tz",
    "",
]


def test_words_are_split_as_perl_splits_them():
    assert arguments.words("-a 'b c' \"d e\"f  g\\ h") == ["-a", "b c", "d ef", "g h"]
    assert arguments.words("-smp 8 'open") == [], "an open quote loses them all"


def perl(texts: list[str]) -> list[list[str]]:
    script = (
        'use Text::ParseWords; $/ = "\\0"; while (<STDIN>) { chomp; '
        'print join("\\1", map { "<$_>" } grep { defined } shellwords($_)), "\\0" }'
    )
    done = subprocess.run(
        ["perl", "-e", script], input="\0".join(texts) + "\0", capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("no Perl with Text::ParseWords")
    return [[word[1:-1] for word in line.split("\1") if word] for line in done.stdout.split("\0")[:-1]]


def test_perl_itself_splits_alike():
    dice = random.Random(12)
    alphabet = "ab'\"\\ \t-=,0"
    texts = ODD + ["".join(dice.choices(alphabet, k=dice.randrange(20))) for _ in range(2000)]
    assert [arguments.words(text) for text in texts] == perl(texts)


@given(args=st.text(max_size=60) | st.from_regex(r"-smp [0-9a-z=,.]{0,30}", fullmatch=True))
def test_any_arguments_give_processors_or_a_value_error(effort, args):
    try:
        smp = arguments.smp(args, FOUR)
    except ValueError:
        return
    assert smp is None or 1 <= smp.cpus <= smp.maxcpus == smp.sockets * smp.per_socket


def test_hostile_arguments_take_no_time():
    before = time.process_time()
    for args in (
        "-smp " + "1," * 500_000,
        "-smp '" + "\\'" * 300_000,
        "a " * 500_000 + "-smp",
        "\\" * 1_000_001 + "smp",
    ):
        machine("cores: 4", f"args: {args}")
    assert time.process_time() - before < 5
