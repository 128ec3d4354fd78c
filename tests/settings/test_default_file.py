"""/etc/default/proxmox-scheduler as the daemon of that name left it: each line counts, or is explained."""

from pathlib import Path

import pytest

from pxsched.host import topology
from pxsched.karpenter import capacity
from pxsched.placement.housekeeping import housekeeping
from pxsched.root import Root
from pxsched.settings import files
from pxsched.settings.default_file import COUNT, DIFFERENT, EXTRA_ARGS, UpperCase, read
from pxsched.settings.files import Settings

GENERATIONS = Path(__file__).parents[1] / "data/proxmox-scheduler"
WHERE = "/etc/default/proxmox-scheduler"


def lines(text: str) -> list[tuple[int, str, str]]:
    """Number, name and value of those that say something."""
    numbered = enumerate(text.splitlines(), 1)
    return [(number, *line.split("=", 1)) for number, line in numbered if line and not line.startswith("#")]


def load(tmp_path: Path, text: str, toml: str = "") -> Settings:
    for name, content in ((files.DEFAULT_FILE, text), (files.NODE_FILE, toml)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return files.load(Root(str(tmp_path)), {})


EFFECTS = {
    "PROXMOX_FEATURE_FLAGS": lambda settings: settings.features == {"karpenter"},
    "CPU_GOVERNOR_BUSY": lambda settings: settings.policy(100).governor == "performance",
    "CPU_GOVERNOR_FREE": lambda settings: settings.node.governor_free == "powersave",
    "RESERVED_CPUS": lambda settings: settings.node.housekeeping == "0,32",
}


@pytest.mark.parametrize("generation", sorted(path.name for path in GENERATIONS.iterdir()))
def test_each_line_of_each_published_generation_has_its_effect_or_is_explained(tmp_path, generation):
    text = (GENERATIONS / generation).read_text()
    settings = load(tmp_path, text)
    assert settings.warnings == ()
    for number, name, value in lines(text):
        about = [note for note in settings.notes if note.startswith(f"{WHERE}:{number}: {name} ")]
        assert len(about) == (name in DIFFERENT or name == "RESERVED_CPUS"), name
        if name in EFFECTS:
            assert EFFECTS[name](settings), name
        else:
            assert about or (name, value) == (EXTRA_ARGS, '""')


def test_all_names_the_daemon_has_had_are_known():
    newest = {name for _, name, _ in lines((GENERATIONS / "1117bb5").read_text())}
    assert newest == {*COUNT, *DIFFERENT, EXTRA_ARGS}


def test_what_says_nothing_new_says_nothing(tmp_path):
    assert read("", {"PATH": "/bin", "EXTRA_ARGS": "--reserved-cpus 1", "VERBOSITY": "1"}) == UpperCase()


FLAGS = [
    ("--reserved-cpus", "0,32", lambda upper: upper.node == {"housekeeping": "0,32"}),
    ("--cpu-governor-busy", "schedutil", lambda upper: upper.defaults == {"governor": "schedutil"}),
    ("--cpu-governor-free", "powersave", lambda upper: upper.node == {"governor_free": "powersave"}),
    *(
        (flag, value, lambda upper: upper.node == upper.defaults == {})
        for flag, value in (
            ("--shared-policy", "partition"),
            ("--shared-min-width", "4"),
            ("--rebalance-debounce", "2s"),
            ("--verbosity", "2"),
            ("--watch-path", "/run/qemu-server"),
            ("--max-retries", "5"),
            ("--resync-interval", "60m"),
            ("--timer-interval", "60m"),
            ("-v", "-1"),
        )
    ),
]


@pytest.mark.parametrize("between", ["=", " "])
@pytest.mark.parametrize("flag, value, has_effect", FLAGS, ids=[flag for flag, _, _ in FLAGS])
def test_each_flag_in_extra_args_has_its_effect_or_is_explained(flag, value, has_effect, between):
    upper = read(f'# mine\nEXTRA_ARGS="{flag}{between}{value}"\n', {})
    assert upper.warnings == () and has_effect(upper)
    explained = [note for note in upper.notes if note.startswith(f"{WHERE}:2: EXTRA_ARGS {flag}: ")]
    assert len(explained) == ("governor" not in flag)


def test_all_flags_in_one_line_count_and_win_over_the_lines_as_in_the_daemon():
    upper = read(
        'EXTRA_ARGS="--version -v3 --reserved-cpus=0-1 \\\n  --cpu-governor-busy schedutil"\n'
        "RESERVED_CPUS=7\nCPU_GOVERNOR_BUSY=ondemand\n",
        {},
    )
    assert upper.warnings == ()
    assert (upper.node, upper.defaults) == ({"housekeeping": "0-1"}, {"governor": "schedutil"})
    assert sum(": EXTRA_ARGS -v: VERBOSITY" in note for note in upper.notes) == 1


@pytest.mark.parametrize(
    "text, said",
    [
        ("EXTRA_ARGS=--reserved-cpu=0", "did you mean '--reserved-cpus'?"),
        ("EXTRA_ARGS='-v 1 --reserved-cpus'", ":1: EXTRA_ARGS --reserved-cpus: its value is missing"),
        ("EXTRA_ARGS=please", "EXTRA_ARGS please: the older daemon has no such flag"),
        ("RESERVED_CPUS=all", "RESERVED_CPUS: "),
        ("EXTRA_ARGS=--reserved-cpus=3-1", "RESERVED_CPUS: "),
        ("SHARD_POLICY=none", "unknown setting 'SHARD_POLICY'; did you mean 'SHARED_POLICY'?"),
    ],
)
def test_what_the_daemon_would_not_take_either_is_named(text, said):
    upper = read(f"{text}\n", {})
    (warning,) = upper.warnings
    assert said in warning
    assert upper.node == {}


def test_where_the_daemon_set_the_governor_untold_the_line_that_does_it_is_named():
    for text, told in (
        ('EXTRA_ARGS=""\n', True),
        ('EXTRA_ARGS=""\nCPU_GOVERNOR_BUSY=\n', False),
        ('EXTRA_ARGS="--cpu-governor-busy=powersave"\n', False),
        ("PROXMOX_FEATURE_FLAGS=karpenter\n", False),
    ):
        assert any("CPU_GOVERNOR_BUSY=performance" in note for note in read(text, {}).notes) == told, text


def test_quotes_and_comments_are_those_of_a_shell():
    for text in ('"0,2"', "'0,2'", "0,2", '"0,2"  # it\'s "mine"', " 0,2 # mine"):
        upper = read(f"; systemd's own comment\nexport RESERVED_CPUS={text}\n", {})
        assert upper.node == {"housekeeping": "0,2"}


def test_reserved_cpus_are_the_hosts_and_not_offered_to_karpenter(tmp_path, machines):
    settings = load(tmp_path, "RESERVED_CPUS=0,64\n").node
    here = topology.read(Root(str(machines / "pepc-milan0/root")))
    assert housekeeping(here, settings) == {0, 64}
    assert capacity.reserved_cpus(here, settings) == {0, 64}
