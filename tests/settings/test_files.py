"""What the admin wants, from all the places where it can be said; and what a tenant cannot say."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.root import Root
from pxsched.settings import files as settings
from pxsched.settings.files import Settings
from pxsched.settings.policy import Fair, NodeSettings, Policy, Prefer, Smt, Wish


class Etc:
    """The files of settings below a root."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.environ: dict[str, str] = {}

    def put(self, name: str, content: str | bytes) -> None:
        path = self.base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def cluster(self, content: str | bytes) -> None:
        self.put(settings.CLUSTER_FILE, content)

    def node(self, content: str | bytes) -> None:
        self.put(settings.NODE_FILE, content)

    def default(self, content: str | bytes) -> None:
        self.put(settings.DEFAULT_FILE, content)

    def load(self) -> Settings:
        return settings.load(Root(str(self.base)), self.environ)


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)


def test_without_any_file_the_defaults_hold(etc):
    assert etc.load() == Settings()
    assert etc.load().policy(100) == Policy()


# Laying one file over the other


def test_this_node_wins_over_the_cluster_key_by_key(etc):
    etc.cluster('[node]\nhousekeeping = "0-1"\nmoves = 5\n[defaults]\nsmt = "isolate"\nstrict = true\n')
    etc.node('[node]\nmoves = 7\n[defaults]\nsmt = "require"\n')
    read = etc.load()
    assert (read.node.housekeeping, read.node.moves) == ("0-1", 7)
    assert (read.defaults.smt, read.defaults.strict) == (Smt.REQUIRE, True)
    assert read.warnings == ()


def test_profiles_and_vms_are_overlaid_key_by_key_too(etc):
    etc.cluster('[profile.db]\nclass = "dedicated"\nprefer = "cache"\n[vm.100]\nprofile = "db"\nfifo = 1\n')
    etc.node('[profile.db]\nprefer = "performance"\n[vm.100]\nfifo = 2\n')
    policy = etc.load().policy(100)
    assert (policy.wish, policy.prefer, policy.fifo) == (Wish.DEDICATED, Prefer.PERFORMANCE, 2)


def test_a_vms_own_settings_win_over_its_profile_and_that_over_the_defaults(etc):
    etc.node(
        '[defaults]\nfair = "pin"\nfifo = 1\nsmt = "share"\n'
        '[profile.p]\nfifo = 2\nsmt = "isolate"\n'
        '[vm.100]\nprofile = "p"\nsmt = "require"\n'
    )
    read = etc.load()
    assert (read.policy(100).fair, read.policy(100).fifo, read.policy(100).smt) == (Fair.PIN, 2, Smt.REQUIRE)
    assert (read.policy(101).fair, read.policy(101).fifo, read.policy(101).smt) == (Fair.PIN, 1, Smt.SHARE)


def test_every_setting_of_a_vm_can_be_written(etc):
    etc.node(
        '[defaults]\nclass = "shared"\nsmt = "isolate"\nprefer = "frequency"\ncpus = "4-7,0"\nnodes = "1"\n'
        'pins = "3,2"\nstrict = true\nmemory = "strict"\nfar_memory = "never"\n'
        'compact = true\nvcpu = false\nemulator = "vm"\nvhost = "off"\n'
        'interrupts = false\ngovernor = "performance"\nenergy = "power"\nnic = false\nisolation = false\n'
        'fifo = 49\nhalt_poll_ns = 0\nresume_latency_us = 0\nfair = "off"\nshape = "off"\nballoon = false\n'
        "starved_mib = 1\nballoon_minimum_percent = 50\n"
        "starved_percent = 2\nwasteful_mib = 3\nwasteful_percent = 4.5\n"
    )
    read = etc.load()
    assert read.warnings == ()
    differs = [name for name in Policy.declared if getattr(read.defaults, name) == getattr(Policy(), name)]
    assert differs == [], "these kept their default"
    assert (read.defaults.cpus, read.defaults.starved_percent) == ("0,4-7", 2.0)


def test_every_setting_of_the_node_can_be_written(etc):
    etc.cluster(
        '[node]\nhousekeeping = "0"\nisolation = "partition"\nothers = "confine"\ndevice_interrupts = true\n'
        'governor_free = "schedutil"\nreserved_mib = 1\nreserved_cpus = "1"\nkarpenter_reserved_mib = 2\n'
        "deviation = 3\ncontention_floor = 0.1\nmoves = 0\ncooldown_s = 0\n"
        'balance_cpu = false\nbalance_memory = false\ntextfile = "/srv/metrics"\nprove = true\n'
        'notify = "mail"\n'
    )
    read = etc.load()
    assert read.warnings == ()
    default = NodeSettings()
    assert [name for name in default.declared if getattr(read.node, name) == getattr(default, name)] == []


# Mistakes


@pytest.mark.parametrize(
    "text, where, nearest",
    [
        ("[defaults]\nstrickt = true\n", "[defaults] strickt", "'strict'"),
        ("[node]\nhousekeping = '0'\n", "[node] housekeping", "'housekeeping'"),
        ("[profile.db]\nclas = 'shared'\n", "[profile.db] clas", "'class'"),
        ("[vm.100]\ngovenor = 'x'\n", "[vm.100] govenor", "'governor'"),
        ("[default]\nsmt = 'share'\n", "[default]", "'defaults'"),
        ("[profiles.db]\n", "[profiles]", "'profile'"),
        ("[profile.fast]\n[vm.100]\nprofile = 'fsat'\n", "[vm.100] profile", "'fast'"),
    ],
)
def test_an_unknown_name_is_named_and_the_nearest_suggested(etc, text, where, nearest):
    etc.node(text)
    (warning,) = etc.load().warnings
    assert where in warning and f"did you mean {nearest}?" in warning


@pytest.mark.parametrize(
    "line",
    ["smt = 'both'", "smt = 1", "strict = 'yes'", "strict = 1", "fifo = 50", "fifo = -1", "fifo = 1.5",
     "fifo = true", "cpus = '0-'", "cpus = 3", "cpus = [0, 1]", "governor = 'A!'", "governor = '../x'",
     "governor = ''' a '''", "starved_percent = 101", "starved_percent = nan", "starved_percent = inf",
     "class = 'pinned'", "memory = true", "fair = {}", "halt_poll_ns = 99999999999", "cpus = '0-99999999'"],
)  # fmt: skip
def test_a_bad_value_is_named_and_the_default_used(etc, line):
    etc.node(f"[defaults]\n{line}\nenergy = 'power'\n")
    read = etc.load()
    assert read.defaults == Policy(energy="power"), "what is right beside it still counts"
    assert len(read.warnings) == 1 and read.warnings[0].startswith(f"[defaults] {line.split()[0]}: ")


def test_a_bad_value_of_a_vm_leaves_what_its_profile_says(etc):
    etc.node("[profile.p]\nsmt = 'isolate'\n[vm.100]\nprofile = 'p'\nsmt = 'x'\n")
    assert etc.load().policy(100).smt is Smt.ISOLATE


@pytest.mark.parametrize(
    "content",
    ["[node\n", "a = \n", b"\xff\xfe\0", "[vm.100]\n[vm.100]\n", "x = " + "[" * 9999, "x = " + "9" * 5000],
    ids=range(6),
)
def test_a_file_that_is_no_toml_is_named_and_the_other_one_counts(etc, content):
    etc.cluster("[defaults]\nstrict = true\n")
    etc.node(content)
    read = etc.load()
    assert read.defaults.strict
    assert len(read.stale) == 1 and "/etc/pxsched/pxsched.toml: " in read.stale[0]
    assert "defaults hold" in read.stale[0]


@pytest.mark.parametrize("name", ["99", "0100", "abc", "1234567890", "٣٣٣", "-100"])
def test_a_vm_is_named_by_its_vmid(etc, name):
    etc.node(f'[vm."{name}"]\nstrict = true\n')
    read = etc.load()
    assert read.vms == {} and "is no VMID" in read.warnings[0]


@pytest.mark.parametrize(
    "line",
    ["profile.p = 3", "vm.100 = 'x'", "profile.p.tag = 'yes'", "profile.p.tag = 1", "vm.100.profile = []"],
)
def test_what_has_the_wrong_shape_is_named(etc, line):
    etc.node(f"{line}\n")
    read = etc.load()
    table = ".".join(line.split()[0].split(".")[:2])
    assert len(read.warnings) == 1 and f"[{table}]" in read.warnings[0]
    assert read.policy(100, ["pxsched-p"]) == Policy()


# Profiles by tag


@pytest.fixture
def offering(etc: Etc) -> Settings:
    etc.node(
        "[profile.open]\ntag = true\nsmt = 'isolate'\n"
        "[profile.other]\ntag = true\nsmt = 'require'\n"
        "[profile.closed]\nclass = 'dedicated'\n"
        "[profile.denied]\ntag = false\nclass = 'dedicated'\n"
        "[vm.200]\nprofile = 'closed'\n"
    )
    read = etc.load()
    assert read.warnings == ()
    return read


def test_a_tag_selects_a_profile_that_offers_itself(offering):
    assert offering.policy(100, ["production", "pxsched-open"]).smt is Smt.ISOLATE


@pytest.mark.parametrize(
    "tag",
    ["pxsched-closed", "pxsched-denied", "pxsched-none", "pxsched-", "open", "xpxsched-open", "PXSCHED-open"],
)
def test_a_tag_selects_nothing_else(offering, tag):
    assert offering.policy(100, [tag]) == Policy()


def test_the_first_tag_that_may_choose_does(offering):
    assert offering.profile(100, ["pxsched-closed", "pxsched-other", "pxsched-open"]) == "other"


def test_no_tag_overrules_the_admins_choice(offering):
    assert offering.profile(200, ["pxsched-open"]) == "closed"
    assert offering.policy(200, ["pxsched-open"]).wish is Wish.DEDICATED


# Upper-case names


def test_the_default_file_is_read_as_a_shell_would(etc):
    etc.default(
        "# comment\n\nexport PROXMOX_FEATURE_FLAGS=\"karpenter\"\nCPU_GOVERNOR_BUSY='performance'\n"
        "CPU_GOVERNOR_FREE=powersave # at night\n"
    )
    read = etc.load()
    assert read.features == {"karpenter"}
    assert read.policy(100).governor == "performance"
    assert read.node.governor_free == "powersave"
    assert read.warnings == ()


def test_the_environment_wins_over_the_default_file(etc):
    etc.default("CPU_GOVERNOR_BUSY=ondemand\nCPU_GOVERNOR_FREE=powersave\nPROXMOX_FEATURE_FLAGS=karpenter\n")
    etc.environ = {"CPU_GOVERNOR_BUSY": "schedutil", "PROXMOX_FEATURE_FLAGS": "", "PATH": "/x"}
    read = etc.load()
    assert read.policy(100).governor == "schedutil"
    assert read.node.governor_free == "powersave"
    assert read.features == frozenset() and read.warnings == ()


def test_a_vms_own_governor_wins_over_the_upper_case_one(etc):
    etc.environ = {"CPU_GOVERNOR_BUSY": "performance"}
    etc.node("[vm.100]\ngovernor = 'powersave'\n")
    assert etc.load().policy(100).governor == "powersave"
    assert etc.load().policy(101).governor == "performance"


def test_an_empty_governor_leaves_those_alone_that_the_upper_case_one_would_set(etc):
    etc.environ = {"CPU_GOVERNOR_BUSY": "performance"}
    etc.node("[vm.100]\ngovernor = ''\n")
    assert (etc.load().policy(100).governor, etc.load().policy(101).governor) == ("", "performance")
    etc.node("[defaults]\ngovernor = ''\n")
    assert etc.load().policy(101).governor == ""


def test_what_the_other_files_say_wins_over_the_upper_case_names(etc):
    etc.environ = {"CPU_GOVERNOR_BUSY": "performance", "CPU_GOVERNOR_FREE": "powersave", "RESERVED_CPUS": "1"}
    etc.cluster("[defaults]\ngovernor = 'ondemand'\n")
    etc.node("[node]\ngovernor_free = 'schedutil'\nhousekeeping = '2'\n")
    read = etc.load()
    assert read.defaults.governor == "ondemand"
    assert (read.node.governor_free, read.node.housekeeping) == ("schedutil", "2")


@pytest.mark.parametrize(
    "line, said",
    [
        ("PROXMOX_FEATURES_FLAG=karpenter", "did you mean 'PROXMOX_FEATURE_FLAGS'?"),
        ("VERBOSE=1", "did you mean 'VERBOSITY'?"),
        ("nonsense", "is not KEY=VALUE"),
        ("PROXMOX_FEATURE_FLAGS=karpentr", "did you mean 'karpenter'?"),
        ("CPU_GOVERNOR_BUSY=../../etc/passwd", "is no plain word"),
        ("CPU_GOVERNOR_FREE=a b", "is no plain word"),
    ],
)
def test_mistakes_in_the_default_file_are_named(etc, line, said):
    etc.default(f"{line}\n")
    read = etc.load()
    (warning,) = read.warnings
    assert said in warning
    assert read.policy(100) == Policy() and read.node == NodeSettings() and not read.features


# Rubbish

VALUES = st.sampled_from(
    ["true", "1", "-1", "1.5", "nan", "inf", "'x'", "''", "'0-3'", "[]", "{}", "1979-05-27", "9" * 5000,
     "0x" + "f" * 5000, "'''\u202e'''", "{a = 1}", "'isolate'", "1e999"]
)  # fmt: skip
KEYS = st.sampled_from(
    ["smt", "class", "strict", "cpus", "fifo", "governor", "profile", "tag", "moves", "deviation", "x"]
)  # fmt: skip
TABLES = st.sampled_from(
    ["node", "defaults", "profile", "profile.a", "vm", "vm.100", "vm.x", "vm.100.a", "profile.'ü'", "[vm]"]
)  # fmt: skip
LINES = st.builds("{} = {}".format, KEYS, VALUES) | st.builds("[{}]".format, TABLES) | st.text(max_size=20)


@given(one=st.lists(LINES, max_size=8), other=st.lists(LINES, max_size=8), upper=st.binary(max_size=40))
def test_rubbish_never_raises(effort, tmp_path_factory, one, other, upper):
    etc = Etc(tmp_path_factory.getbasetemp() / "settings")
    etc.cluster("\n".join(one).encode("utf-8", "replace"))
    etc.node("\n".join(other).encode("utf-8", "replace"))
    etc.default(b"CPU_GOVERNOR_BUSY=" + upper)
    read = etc.load()
    read.policy(100, ["pxsched-a", "pxsched-"])
    assert all(isinstance(warning, str) for warning in read.warnings)


def test_what_the_cluster_says_of_one_node_counts_there_alone(etc):
    etc.put("etc/hostname", "pve1.example.org\n")
    etc.cluster(
        '[node]\nmoves = 3\n[node.pve1]\nhousekeeping = "0,32"\n[node.pve1.vm.100]\ncpus = "0-7"\n'
        '[node.pve2]\nhousekeeping = "1"\n[node.pve2.vm.100]\ncpus = "8-15"\n[vm.100]\nstrict = true\n'
    )
    here = etc.load()
    there = settings.of_node("pve2", settings.content(Root(str(etc.base)), settings.CLUSTER_FILE), {})
    assert (here.node.housekeeping, here.policy(100).cpus) == ("0,32", "0-7")
    assert (there.node.housekeeping, there.policy(100).cpus) == ("1", "8-15")
    assert here.node.moves == there.node.moves == 3 and here.policy(100).strict and not here.warnings


def test_a_nodes_own_file_wins_over_what_the_cluster_says_of_it(etc):
    etc.put("etc/hostname", "pve1\n")
    etc.cluster('[node.pve1.vm.100]\ncpus = "0-7"\n')
    etc.node('[vm.100]\ncpus = "4-5"\n')
    assert etc.load().policy(100).cpus == "4-5"


def test_what_is_wrong_in_a_nodes_section_is_named(etc):
    etc.put("etc/hostname", "pve1\n")
    etc.cluster('[node.pve1]\nhousekeepin = "1"\n[node.pve1.vms.100]\ncpus = "0"\n[node.moves]\nx = 1\n')
    said = "\n".join(etc.load().warnings)
    assert "housekeepin: unknown setting; did you mean 'housekeeping'?" in said
    assert "[node.NAME] [vms]: unknown table; did you mean 'vm'?" in said
    assert "[node] moves:" in said
