"""VM configurations: Proxmox's own, real people's, ours, and rubbish."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.guest import config, options
from pxsched.guest.config import Config, GuestNode, HostPci, Machine
from pxsched.host import cpulist

OURS = Path(__file__).resolve().parents[1] / "data" / "configs"
CORPUS = Path(os.environ["PXSCHED_CORPORA"], "configs")
FACTS_FILE = CORPUS / "pve-tests" / "expected-from-cmd.json"
NO_PVE_TESTS = "Proxmox's own tests are AGPL, and not copied"
FACTS = json.loads(FACTS_FILE.read_text())["facts"] if FACTS_FILE.exists() else {"all": None}


def parse(*lines: str) -> Config:
    return config.parse("\n".join(lines) + "\n", name="100.conf")


def machine(*lines: str) -> Machine:
    parsed = parse(*lines)
    assert parsed.warnings == ()
    return config.machine(parsed)


def ours(name: str) -> Config:
    return config.parse((OURS / name).read_text(), name=name)


# What Proxmox itself says


def test_every_published_configuration_is_read(corpora):
    listed = json.loads((corpora / "configs/sources.json").read_text())
    files = [corpora / "configs" / source["file"] for source in listed if source["file"].endswith(".conf")]
    assert files
    for file in files:
        parsed = config.parse(file.read_text(errors="replace"), name=file.name)
        config.machine(parsed)
        broken = [warning for warning in parsed.warnings if "verify meee" not in warning]
        # One real file has an option without a value; everything else is understood.
        assert not broken or file.name.endswith("server__103.conf")


@pytest.mark.parametrize("name", FACTS)
def test_the_vm_is_the_one_that_proxmox_starts(corpora, name):
    facts = FACTS[name] or pytest.skip(NO_PVE_TESTS)
    read = config.machine(config.parse((corpora / "configs" / name).read_text(), name=name))
    if read.template:
        return  # Proxmox starts a template, for a backup only, with one CPU and 512 MiB
    assert read.vcpus == facts["smp_online"]
    assert (read.sockets, read.cores) == (facts["sockets"], facts["cores"])
    assert read.sockets * read.cores == facts["maxcpus"]
    assert str(read.memory_mib) == facts["m"]
    assert (read.balloon_mib != 0) == facts["balloon_device"]
    assert read.numa == ("numa" in facts)
    assert (read.hugepage_mib is not None) == any(node["hugepage_path"] for node in facts.get("numa", []))
    if not any(device.mapping for device in read.hostpci):
        addresses = [address for device in read.hostpci for address in device.addresses]
        assert addresses == facts.get("hostpci_functions", [])


def test_a_file_is_read_as_proxmox_reads_it(corpora):
    if not (corpora / "configs/pve-tests").exists():
        pytest.skip(NO_PVE_TESTS)
    inputs = sorted((corpora / "configs/pve-tests/parse-config-input").glob("*.conf"))
    assert len(inputs) >= 6
    for file in inputs:
        expected = corpora / "configs/pve-tests/parse-config-expected" / file.name
        after = config.parse((expected if expected.exists() else file).read_text())
        before = config.parse(file.read_text())
        for part in ("options", "pending", "cloudinit", "snapshots", "description"):
            assert getattr(before, part) == getattr(after, part), f"{file.name}: {part}"


# What the grammar says


def test_the_top_section_alone_is_in_force():
    read = ours("pinned.conf")
    assert read.options["affinity"] == "0-7,32-39,8-15"
    assert read.pending == {"affinity": "0-23", "delete": "balloon"}
    assert read.snapshots["before_upgrade"] == {
        "cores": "4", "memory": "4096", "snaptime": "1737548747", "description": "the old one",
    }  # fmt: skip
    assert read.description == "Database server\n\nüber 64 % of the load comes at night"
    assert read.warnings == ()


def test_everything_that_matters_for_placing_a_vm_is_found():
    vm = config.machine(ours("pinned.conf"))
    assert vm.affinity == (*range(8), *range(32, 40), *range(8, 16))
    assert (vm.name, vm.sockets, vm.cores, vm.vcpus) == ("db1", 2, 12, 24)
    assert (vm.memory_mib, vm.balloon_mib, vm.hugepage_mib) == (65536, 0, 1024)
    assert vm.guest_nodes == (
        GuestNode(frozenset(range(12)), 32768, frozenset({0}), "bind"),
        GuestNode(frozenset(range(12, 24)), 32768, frozenset({1}), "bind"),
    )
    assert vm.hostpci == (
        HostPci(0, ("0000:41:00.0",)),
        HostPci(1, ("0000:81:00.1", "0000:81:00.2")),
        HostPci(2, (), "gpu", "nvidia-63"),
    )
    assert vm.nics == (0, 3)
    assert vm.iothreads == ("virtio0", "scsi0")
    assert vm.tags == ("production", "pxsched-fast")
    assert vm.opted_in


def test_proxmox_defaults_hold_where_nothing_is_said():
    vm = config.machine(ours("minimal.conf"))
    assert vm == Machine(name="tiny", sockets=1, cores=1, vcpus=1, memory_mib=512, shares=1000, weight=100)
    assert vm.balloon_mib is None and vm.hugepage_mib is None and not vm.numa


def test_notes_are_never_settings_and_broken_lines_are_named():
    read = ours("tenant.conf")
    vm = config.machine(read)
    assert vm.affinity == () and vm.hookscript == "" and not vm.opted_in
    assert read.description.splitlines()[0] == "affinity: 0-1"
    assert read.description.endswith("said\ntwice")
    assert (vm.weight, vm.cpu_limit) == (10000, 1.5)
    assert [warning.split(": ")[0:2] for warning in read.warnings] == [
        ["tenant.conf:9", "numa"],
        ["tenant.conf:11", "affinity"],
    ]
    assert vm.vcpus == 2 and "vcpus 9 is more than" in vm.warnings[0]


@pytest.mark.parametrize(
    "lines",
    [("cores: 2", "cores: 4"), ("cores:4",), ("cores:   4  ",), ("cores: 4\r",), ("", "  ", "cores: 4"),
     ("cores: x", "cores: 4"), ("#cores: 9", "cores: 4"), ("cores: 4", "[PENDING]", "cores: 8"),
     ("cores: 4", "[pending]", "cores: 8"), ("cores: 4", "[snap]", "cores: 8"),
     ("cores: 4", "[special:cloudinit]", "cores: 8"), ("cores: 4", "[Unknown section!]", "cores: 8")],
)  # fmt: skip
def test_four_cores_are_four_cores(lines):
    assert config.machine(parse(*lines)).cores == 4


@pytest.mark.parametrize(
    "line",
    ["boot:", "cores: ", "cores: 0", "cores: -1", "cores: 1e9", "cores: 99999999", "Cores: 4", " cores: 4",
     "cores 4", "co res: 4", "memory: lots", "memory: current=1,current=2", "balloon: -1", "shares: 50001",
     "cpuunits: 300000", "cpulimit: nan", "cpulimit: 1,5", "affinity: a", "affinity: 3-1",
     "affinity: 0-3:1/2", "numa: maybe", "hugepages: 4", "numa0: memory=1", "numa0: cpus=0,policy=best",
     "hostpci0: nonsense", "hostpci0: pcie=1", "delete: cores", "numa0: cpus=0,cpus=1", "½: 1",
     "affinity: ,1", "affinity: 1,,2", "affinity: , ,1", "affinity: 0 -1", "affinity: 0- 1",
     "smp: 0", "smp: 2,cores=2", "[a]b]", "[snap]]", "[PENDING]x]",
     "numa0: cpus=0, memory=512", "numa0: cpus = 0,memory=512", "numa0: cpus=0 ,memory=512",
     "numa0: cpus=0,memory=512,colour=red", "numa0: cpus=0,memory=512,hostnodes=", "numa0: cpus=0;,memory=1",
     "numa0: cpus=0; 1,memory=512", "numa0: 0,memory=512", "hostpci0: 01:00.0, pcie=1",
     "numa8: cpus=0,memory=512", "numa00: cpus=0,memory=512", "hostpci16: 01:00.0", "memory: 15"],
)  # fmt: skip
def test_a_line_that_proxmox_would_not_take_is_a_warning_with_file_and_line(line):
    read = parse("name: x", line)
    assert len(read.warnings) == 1 and read.warnings[0].startswith("100.conf:2: ")
    assert config.machine(read) == Machine(name="x")


@pytest.mark.parametrize(
    "line, field, value",
    [
        ("memory: 16", "memory_mib", 16),
        ("memory: current=4096", "memory_mib", 4096),
        ("balloon: 1024", "balloon_mib", 1024),
        ("hugepages: any", "hugepage_mib", 0),
        ("hugepages: 2", "hugepage_mib", 2),
        ("cpuunits: 0", "weight", 100),
        ("cpulimit: 0.5", "cpu_limit", 0.5),
        ("numa: yes", "numa", True),
        ("numa: off", "numa", False),
        ("template: 1", "template", True),
        ("lock: backup", "lock", "backup"),
        ("tags: a;b,c d", "tags", ("a", "b", "c", "d")),
        ("affinity: 1,1, 0", "affinity", (1, 1, 0)),
        ("hostpci3: 0001:0a:00", "hostpci", (HostPci(3, ("0001:0a:00",)),)),
        ("hostpci3: host=0A:00.7", "hostpci", (HostPci(3, ("0000:0a:00.7",)),)),
    ],
)
def test_values_mean_what_they_mean_to_proxmox(line, field, value):
    assert getattr(machine(line), field) == value


def test_inner_lists_of_a_guest_node_are_separated_by_semicolons():
    (node,) = machine("numa0: cpus=0-3;8,memory=100,hostnodes=0;2-3,policy=interleave").guest_nodes
    assert (node.cpus, node.host_nodes) == ({0, 1, 2, 3, 8}, {0, 2, 3})


def test_a_heading_that_is_none_does_not_end_the_section():
    read = parse("cores: 2", "[a]b]", "sockets: 2", "[PENDING]", "[snap]]", "cores: 3", "[ok]", "cores: 4")
    assert (read.options, read.pending) == ({"cores": "2", "sockets": "2"}, {"cores": "3"})
    assert read.snapshots == {"ok": {"cores": "4"}}
    assert [warning.split(":")[1] for warning in read.warnings] == ["2", "5"]


@pytest.mark.parametrize(
    "lines, sockets",
    [(("smp: 3",), 3), (("smp: 3", "sockets: 2"), 2), (("sockets: 2", "smp: 3"), 2), (("sockets: 2",), 2)],
)
def test_the_old_key_smp_is_the_number_of_sockets_where_there_is_no_other(lines, sockets):
    vm = machine(*lines, "cores: 2")
    assert (vm.sockets, vm.cores, vm.vcpus) == (sockets, 2, 2 * sockets)


AFFINITIES = ["0", "0,0", "0-0", "00", "0 ,0", "0,0 ,0", "0, 0", "0,", "0,0,,", "0,\t0",
              "0, 0,0", "0-0, 0-0", ","]  # fmt: skip


@pytest.mark.parametrize("text", AFFINITIES)
def test_an_affinity_that_taskset_refuses_is_said_to_keep_the_vm_from_starting(text):
    read = parse(f"affinity: {text}")
    assert read.warnings == (), "qm set takes it"
    starts = subprocess.run(["taskset", "--cpu-list", text, "true"], capture_output=True, check=False)
    said = config.machine(read).warnings
    assert (not said) == (starts.returncode == 0)
    assert all("cannot start: taskset refuses affinity" in line for line in said)


@pytest.mark.parametrize(
    "drive, counts",
    [("local:d,iothread=1", True), ("local:d,iothread=ON", True), ("local:d,iothread=Yes,size=1G", True),
     ("iothread=TRUE,file=local:d", True), ("local:d,iothread=0", False), ("local:d,iothread=off", False),
     ("local:d,iothread=2", False), ("local:d, iothread=1", False), ("local:d,iothread=1,iothread=1", False),
     ("local:x.iso,media=cdrom,iothread=1", False), ("local:d,media=disk,iothread=1", True),
     ("local:d", False)],
)  # fmt: skip
def test_an_iothread_counts_as_proxmox_counts_it(drive, counts):
    assert machine(f"virtio3: {drive}").iothreads == (("virtio3",) if counts else ())


def test_an_iothread_of_a_scsi_disk_counts_with_the_single_controller_only():
    disk = "scsi2: local:d,iothread=1"
    assert machine(disk).iothreads == ()
    assert machine("scsihw: virtio-scsi-pci", disk).iothreads == ()
    assert machine("scsihw: virtio-scsi-single", disk).iothreads == ("scsi2",)


@pytest.mark.parametrize(
    "hookscript, ours",
    [("local:snippets/pxsched", True), ("nfs-1:snippets/pxsched", True), ("", False),
     ("local:snippets/other", False), ("local:snippets/pxsched.sh", False), ("local:iso/pxsched", False),
     ("local:snippets/../pxsched", False), ("/etc/local:snippets/pxsched", False)],
)  # fmt: skip
def test_opting_in_is_having_our_hookscript(hookscript, ours):
    assert Machine(hookscript=hookscript).opted_in is ours


def test_a_second_section_of_one_name_replaces_the_first():
    read = parse("[PENDING]", "cores: 2", "bios: ovmf", "[PENDING]", "cores: 3", "[a1]", "cores: 4", "[a1]")
    assert read.pending == {"cores": "3"} and read.snapshots == {"a1": {}}


def test_a_warning_quotes_little_of_a_long_line():
    assert len(parse("x" * 100_000).warnings[0]) < 200
    assert len(parse("affinity: " + "1," * 100_000 + "x").warnings[0]) < 300


@pytest.mark.parametrize(
    "line",
    ["ciuser: a" + " " * 500_000 + "b", "net" + "1" * 5000 + ": virtio", "numa" + "0" * 5000 + ": cpus=0",
     "numa0: cpus=" + ";".join(["0-65535"] * 50_000), "hostpci0: " + "00:00;" * 100_000,
     "[" + "]" * 500_000 + "x", "[" + "a" * 500_000, "affinity: 0" + "," * 500_000,
     "affinity: " + "0-8000," * 100_000, "virtio0: " + "a," * 200_000,
     "#" + "%" * 500_000, "tags: " + "a " * 200_000, "a" * 500_000],
    ids=lambda line: line[:12],
)  # fmt: skip
def test_a_hostile_line_takes_neither_long_nor_the_memory(line):
    before = time.process_time()
    config.machine(parse(line))
    assert time.process_time() - before < 5


# Rubbish

KEYS = st.sampled_from(
    ["cores", "sockets", "smp", "vcpus", "memory", "balloon", "shares", "cpuunits", "cpulimit", "affinity",
     "numa", "numa0", "numa99", "hugepages", "hostpci0", "net0", "scsi0", "virtio1", "scsihw", "tags", "name",
     "delete", "description", "hookscript", "template", "lock"]
)  # fmt: skip
NEARLY = ["1", "999999999999", "cpus=0-3,memory=x", "cpus=0,hostnodes=0-9", "host=00:00.0", "iothread=1", "٣"]
VALUES = st.text(max_size=40) | st.from_regex(r"[0-9,;=\-. ]{0,30}") | st.sampled_from(NEARLY)
LINES = (
    st.builds("{}: {}".format, KEYS, VALUES)
    | st.builds("[{}]".format, st.text(max_size=12) | st.sampled_from(["PENDING", "snap", "special:x"]))
    | st.builds("#{}".format, st.text(max_size=30))
    | st.text(max_size=60)
)


@given(lines=st.lists(LINES, max_size=12))
def test_rubbish_never_raises(effort, lines):
    read = config.parse("\n".join(lines), name="x")
    vm = config.machine(read)
    assert all(warning.startswith("x:") for warning in read.warnings)
    assert 1 <= vm.vcpus <= options.MAX_VCPUS and vm.memory_mib >= 1
    assert vm.vcpus <= vm.sockets * vm.cores


@given(data=st.binary(max_size=200))
def test_bytes_never_raise(effort, data):
    config.machine(config.parse(data.decode("utf-8", "replace")))


@given(
    options=st.dictionaries(
        st.sampled_from(["name", "ostype", "args", "boot", "vga"]),
        st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"]), min_size=1, max_size=20),
    ),
    notes=st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30),
)
def test_what_proxmox_writes_is_what_we_read(options, notes):
    encoded = "".join(f"%{byte:02X}" for byte in notes.encode())
    read = parse(f"#{encoded}", *(f"{key}: {value}" for key, value in options.items()))
    assert (read.options, read.description, read.warnings) == (options, notes, ())


@given(text=st.text(alphabet="ab=,; ", max_size=30))
def test_a_property_string_is_read_or_refused_with_a_value_error(text):
    try:
        values = options.property_string(text, "file")
    except ValueError:
        return
    assert all(values)


@given(text=st.text(alphabet="01-, \t", max_size=12))
def test_an_affinity_is_a_list_of_cpus_or_is_refused_with_a_value_error(text):
    try:
        cpus = options.affinity(text)
    except ValueError:
        return
    assert cpus == cpulist.parse_ordered(text), "what we take, the kernel's grammar reads the same way"
    assert cpus or not options.taskset_takes(text)


@pytest.mark.parametrize(
    ("stem", "last", "value"),
    [
        ("numa", 7, "cpus=0,memory=512"),
        ("hostpci", 15, "0000:01:00"),
        ("net", 31, "virtio,bridge=vmbr0"),
        ("virtio", 15, "local:1/a,iothread=1"),
        ("scsi", 30, "local:1/b,iothread=1"),
    ],
)
def test_of_numbered_options_those_that_proxmox_knows_count(stem, last, value):
    """MAX_NUMA, MAX_HOSTPCI_DEVICES, MAX_NETS, MAX_VIRTIO_DISKS and MAX_SCSI_DISKS of qemu-server."""
    lines = [f"{stem}{number}: {value}" for number in (0, last, last + 1)] + [f"{stem}01: {value}"]
    found = config.parse("\n".join(lines))
    assert [*found.options] == [f"{stem}0", f"{stem}{last}"]
    assert [f"{stem}{last + 1}: there is no" in found.warnings[0], len(found.warnings)] == [True, 2]
