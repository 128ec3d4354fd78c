"""What a person is told of a VM beside its place: in `plan`, in the doctor's findings, in the pass's line."""

import json

import pytest

from pxsched.host import cpulist

CPU = "sys/devices/system/cpu"


def said(small, vmid: int, words: str) -> bool:
    """Whether plan and doctor both say it, the doctor with the VM's number."""
    findings = [line for line in small.findings("placement") if f"VM {vmid}" in line and words in line]
    in_plan = words in small.run("plan", str(vmid))
    assert bool(findings) == in_plan, "plan and doctor tell the same"
    return in_plan


def frequency(small, governor: str, preference: str = "balance_power") -> None:
    for cpu in range(small.CPUS):
        base = f"{CPU}/cpufreq/policy{cpu}"
        small.put(f"{base}/related_cpus", str(cpu))
        small.put(f"{base}/scaling_driver", "intel_pstate")
        small.put(f"{base}/scaling_governor", governor)
        small.put(f"{base}/scaling_available_governors", "performance powersave")
        small.put(f"{base}/energy_performance_preference", preference)
        names = "default performance balance_performance balance_power power"
        small.put(f"{base}/energy_performance_available_preferences", names)
        link = small.base / f"{CPU}/cpu{cpu}/cpufreq"
        link.symlink_to(f"../cpufreq/policy{cpu}")


# A VM that does not start, or not as written


@pytest.mark.parametrize(
    "text, words",
    [
        ("cores: 2\naffinity: 1, 0", "cannot start: taskset refuses affinity '1, 0'"),
        ("cores: 2\naffinity: 4,", "cannot start: taskset refuses affinity '4,'"),
        ("cores: 2\naffinity: ,1", "drops a line: 100.conf:4: affinity"),
        ("cores: 2\nnuma0: cpus=0, memory=512", "drops a line: 100.conf:4: numa0"),
        ("cores: 4\nvcpus: 5", "cannot start: vcpus 5 is more than sockets x cores = 4"),
        ("sockets: 2\ncores: 7\nvcpus: 2", "cannot start: Proxmox refuses 14 vCPUs on a node of 12 CPUs"),
        ("cores: 4\nargs: -smp threads=2", "cannot start: QEMU refuses the -smp"),
        ("cores: 4\nargs: -smp 8,maxcpus=8", "-smp in `args` makes it 8 vCPUs"),
    ],
)
def test_what_keeps_a_vm_from_starting_and_what_counts_for_nothing_is_said(small, text, words):
    small.vm(100, text)
    assert said(small, 100, words)
    small.vm(100, "cores: 2\naffinity: 1,0")
    assert not said(small, 100, "cannot start") and not said(small, 100, "drops a line")


@pytest.mark.parametrize("online, refused", [("0-7", True), ("0-8", False)])
def test_cpus_that_are_offline_are_none_of_the_nodes(small, online, refused):
    small.put(f"{CPU}/online", online)
    small.vm(100, "cores: 9\nvcpus: 2")
    assert said(small, 100, "cannot start: Proxmox refuses 9 vCPUs on a node of 8 CPUs") == refused


def test_a_vm_that_cannot_start_is_a_bad_finding(small):
    small.vm(100, "cores: 2\naffinity: 1, 0")
    assert any(line.startswith("bad: VM 100: the VM cannot start") for line in small.findings("placement"))


def test_more_running_vcpus_than_configured_ones_are_said_and_counted(small):
    small.vm(100, "cores: 4\naffinity: 8-11", vcpus=6)
    assert said(small, 100, "QEMU runs 6 vCPUs, where the configuration says 4")
    assert small.findings("overcommit")[0].startswith("ok: running VMs: 6 vCPUs on 12 CPUs")


@pytest.mark.parametrize(
    "option, there, gone",
    [
        ("0000:99:00", (), "hostpci1: 0000:99:00 is not there"),
        ("99:00.1", ("0000:99:00.0",), "hostpci1: 0000:99:00.1 is not there"),
        ("0000:98:00;0000:99:00", ("0000:99:00.0",), "hostpci1: 0000:98:00 is not there"),
        ("mapping=gpu", ("0000:03:00.0",), "hostpci1: 0000:01:00.0 0000:02:00.0 are not there"),
        ("mapping=gpu", ("0000:02:00.0",), "hostpci1: 0000:01:00.0 is not there"),
        ("mapping=gpu", ("0000:01:00.0", "0000:02:00.0"), ""),
        ("mapping=fpga", (), "hostpci1: mapping fpga has no device on this node"),
        ("0000:99:00", ("0000:99:00.3",), ""),
    ],
)
def test_a_passed_through_device_that_is_gone_is_said(small, option, there, gone):
    small.put("sys/bus/pci/devices/0000:00:00.0/class", "0x060000")
    for address in there:
        small.put(f"sys/bus/pci/devices/{address}/class", "0x030000")
    lines = [f"\tmap id=1:2,node=pve1,path=0000:0{bus}:00.0" for bus in (1, 2)]
    small.put(
        "etc/pve/mapping/pci.cfg", "\n".join(["gpu", *lines, "\tmap id=1:2,node=other,path=0000:03:00.0"])
    )
    small.vm(100, f"cores: 2\nhostpci1: {option}")
    assert said(small, 100, "cannot start while its device is gone") == bool(gone)
    assert not gone or said(small, 100, gone)


@pytest.mark.parametrize(("device", "gone"), [("0x0001", False), ("0x0002", True)])
def test_another_device_at_the_mapped_address_is_said(small, device, gone):
    small.put("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de")
    small.put("sys/bus/pci/devices/0000:01:00.0/device", device)
    small.put("etc/pve/mapping/pci.cfg", "gpu\n\tmap id=10de:0001,node=pve1,path=0000:01:00")
    small.vm(100, "cores: 2\nhostpci0: mapping=gpu")
    words = "device is gone (hostpci0: 0000:01:00 is 10de:0002, not 10de:0001)"
    assert said(small, 100, words) == said(small, 100, "cannot start") == gone


# Frequency


@pytest.mark.parametrize(
    "settings, governor, words",
    [
        ('energy = "balanced"', "powersave", "there is no energy preference 'balanced'"),
        ('energy = "eco"', "performance", "there is no energy preference 'eco'"),
        ('energy = "balance_power"', "performance", "the governor performance takes no other preference"),
        (
            'energy = "power"\ngovernor = "performance"',
            "powersave",
            "the governor performance takes no other",
        ),
        ('energy = "256"', "powersave", "there is no energy preference '256'"),
        ('energy = "128"', "performance", "the governor performance takes no other preference"),
        ('governor = "schedutil"', "powersave", "there is no governor 'schedutil'"),
    ],
)
def test_a_preference_or_governor_that_cannot_be_had_is_said(small, settings, governor, words):
    frequency(small, governor)
    small.settings(f"[vm.100]\n{settings}\n")
    small.vm(100, "cores: 2\naffinity: 4,5")
    assert said(small, 100, words)


@pytest.mark.parametrize(
    "settings, governor",
    [
        ('energy = "power"', "powersave"),
        ('energy = "77"', "powersave"),
        ('energy = "255"', "powersave"),
        ('energy = "0"', "performance"),
        ('governor = "powersave"', "powersave"),
    ],
)
def test_one_that_can_be_had_is_no_word_worth(small, settings, governor):
    frequency(small, governor)
    small.settings(f"[vm.100]\n{settings}\n")
    small.vm(100, "cores: 2\naffinity: 4,5")
    assert "warning" not in small.run("plan", "100")
    assert [line[:3] for line in small.findings("placement")] == ["ok:"]


# Kinds of CPU: here CPUs 3-5,9-11 are efficiency cores


@pytest.fixture
def hybrid(small):
    small.put("sys/devices/cpu_core/cpus", "0-2,6-8")
    small.put("sys/devices/cpu_atom/cpus", "3-5,9-11")
    for cpu in (3, 4, 5, 9, 10, 11):
        small.put(f"{CPU}/cpu{cpu}/topology/core_cpus_list", str(cpu))
    return small


@pytest.mark.parametrize(
    "affinity, mixed", [("2-3", True), ("0,9", True), ("0-2,3", True), ("0-1", False), ("4-5", False)]
)
def test_an_affinity_over_both_kinds_is_said(hybrid, affinity, mixed):
    hybrid.vm(100, f"cores: 2\naffinity: {affinity}")
    assert said(hybrid, 100, "affinity mixes performance cores") == mixed
    hybrid.settings(f'[vm.100]\npins = "{affinity}"\n')
    hybrid.vm(100, f"cores: {len(cpulist.parse(affinity))}")
    assert said(hybrid, 100, "pins mixes performance cores") == mixed


@pytest.mark.parametrize(
    "cores, prefer, slow", [(4, "any", True), (5, "any", True), (2, "any", False), (4, "efficiency", False)]
)
def test_whole_cores_that_are_efficiency_cores_are_said(hybrid, cores, prefer, slow):
    hybrid.settings(
        f'[node]\nhousekeeping = ""\n[vm.100]\nclass = "dedicated"\nsmt = "isolate"\nprefer = "{prefer}"\n'
    )
    hybrid.vm(100, f"cores: {cores}")
    assert said(hybrid, 100, 'smt = "isolate" has vCPUs on efficiency cores') == slow


# CPUs that the kernel does not balance


@pytest.mark.parametrize(
    "text, settings", [("cores: 2\naffinity: 3-5", ""), ("cores: 2", '[vm.100]\ncpus = "9-11"\n')]
)
def test_vcpus_on_cpus_that_the_kernel_does_not_balance_are_named(small, text, settings):
    small.put(f"{CPU}/isolated", "3-5,9-11")
    small.settings(settings)
    small.vm(100, text)
    assert said(small, 100, "isolated from the kernel's load balancing (isolcpus)")


# Places that were lost


@pytest.mark.parametrize("affinity, gone", [("4,5", (4,)), ("0,1,10,11", (10, 11))])
def test_the_pass_says_why_a_vm_was_let_go_and_the_doctor_that_it_runs_unplaced(small, affinity, gone):
    small.vm(100, f"cores: {len(affinity.split(','))}\naffinity: {affinity}", vcpus=2)
    assert "placed VM 100" in small.run("tick")
    small.put(f"{CPU}/online", ",".join(str(cpu) for cpu in range(12) if cpu not in gone))
    words = "offline or absent on this machine"
    line = small.run("tick")
    assert "let go of VM 100 (affinity pins to CPU" in line and words in line
    assert words not in small.run("tick"), "once"
    (finding,) = (found for found in small.findings("placement") if "VM 100" in found)
    assert finding.startswith("warn: VM 100 runs unplaced: affinity pins to CPU") and words in finding
    small.put(f"{CPU}/online", "0-11")
    assert "placed VM 100" in small.run("tick")


def test_a_vm_that_is_no_longer_opted_in_is_let_go_for_that_reason(small):
    small.vm(100, "cores: 2", vcpus=2)
    small.run("tick")
    small.put("etc/pve/nodes/pve1/qemu-server/100.conf", "cores: 2")
    assert "let go of VM 100 (it is no longer opted in)" in small.run("tick")


# The fence


def test_the_fence_is_one_finding_and_a_line_of_every_plan(small):
    small.put("sys/fs/cgroup/qemu.slice/cpuset.cpus.effective", "3-5")
    small.put("sys/fs/cgroup/qemu.slice/cpuset.cpus", "3-5")
    for vmid in (100, 101):
        small.vm(vmid, "cores: 2")
        assert small.run("plan", str(vmid)).count("AllowedCPUs of qemu.slice lets it have") == 1
    (finding,) = small.findings("fence")
    assert finding.startswith("warn: AllowedCPUs of qemu.slice lets VMs have CPUs 3-5 only: 0-2,6-11")
    assert not [line for line in small.findings("placement") if "only" in line], "said once for all VMs"


# The hookscript


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_script_without_its_run_bit_is_not_executable(small, mode):
    small.vm(100, "cores: 1")
    (small.base / "var/lib/vz/snippets/pxsched").chmod(mode)
    (line,) = small.findings("hookscript")
    assert line == "bad: local:snippets/pxsched is not executable: VMs 100 cannot start"
    (small.base / "var/lib/vz/snippets/pxsched").unlink()
    assert "is missing: VMs 100 cannot start" in small.findings("hookscript")[0]


def test_a_directory_in_the_scripts_place_is_no_script(small):
    small.vm(100, "cores: 1")
    script = small.base / "var/lib/vz/snippets/pxsched"
    script.unlink()
    script.mkdir()
    (line,) = small.findings("hookscript")
    assert line == "bad: local:snippets/pxsched is missing: VMs 100 cannot start"


@pytest.mark.parametrize(
    "point, options, barred",
    [
        ("/", "rw,noexec", True),
        ("/var/lib/vz", "rw,nosuid,noexec", True),
        ("/var/lib/vz", "rw", False),
        ("/var/lib/v", "rw,noexec", False),
        ("/var/lib/vz/snippets/pxsched2", "rw,noexec", False),
    ],
)
def test_a_script_on_a_file_system_without_programs_is_not_executable(small, point, options, barred):
    small.vm(100, "cores: 1")
    small.put("proc/mounts", f"/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 {point} ext4 {options} 0 0")
    (line,) = small.findings("hookscript")
    assert line.startswith("bad: ") == barred
    found = json.loads(small.run("doctor", "--json"))["findings"]
    (remedy,) = (one["remedy"] for one in found if one["area"] == "hookscript")
    assert ("mounted `noexec`" in remedy) == barred


STORAGES = """
nfs: share
\tpath /mnt/pve/share
\tserver 192.0.2.1

cifs: office
\tserver 192.0.2.2

dir: disk
\tpath /mnt/my disk
\tis_mountpoint 1

dir: part
\tpath /srv/big/part
\tis_mountpoint /srv/big

dir: plain
\tpath /srv/plain
"""


@pytest.mark.parametrize(
    "storage, point",
    [
        ("share", "/mnt/pve/share"),
        ("office", "/mnt/pve/office"),
        ("disk", r"/mnt/my\040disk"),
        ("part", "/srv/big"),
    ],
)
def test_nothing_is_written_below_a_mount_point_that_is_not_mounted(small, storage, point):
    small.put("etc/pve/storage.cfg", STORAGES)
    small.put("proc/mounts", f"/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 {point}2 ext4 rw 0 0")
    small.vm(100, "cores: 1")
    conf = small.base / "etc/pve/nodes/pve1/qemu-server/100.conf"
    conf.write_text(f"cores: 1\nhookscript: {storage}:snippets/pxsched\n")
    assert "is not mounted on" in small.run("node", "install", "--storage", storage)
    assert not [path for path in small.base.rglob("pxsched") if "mnt" in str(path) or "srv" in str(path)]
    assert any(f"storage {storage} is not mounted" in line for line in small.findings("hookscript"))
    small.put("proc/mounts", f"/dev/sda1 / ext4 rw 0 0\nserver:/x {point} nfs rw 0 0")
    assert "would write" in small.run("node", "install", "--storage", storage, "--dry-run")


def test_a_directory_that_is_no_mount_point_is_written(small):
    small.put("etc/pve/storage.cfg", STORAGES)
    small.put("proc/mounts", "/dev/sda1 / ext4 rw 0 0")
    assert "would write /srv/plain/snippets/pxsched" in small.run(
        "node", "install", "--storage", "plain", "--dry-run"
    )


def test_a_host_node_that_is_not_there_keeps_the_vm_from_starting_whatever_its_class(small):
    numa = "numa: 1\nnuma0: cpus=0-1,memory=2048,hostnodes=7,policy=bind"
    small.vm(100, f"cores: 2\n{numa}")
    small.vm(101, f"cores: 2\naffinity: 0,1\n{numa}")
    small.vm(102, f"cores: 2\naffinity: 0-3\n{numa}")
    for vmid in 100, 101, 102:
        found = [line for line in small.findings("placement") if f"VM {vmid}" in line and "node 7" in line]
        assert found and all(line.startswith("bad: ") and "cannot start" in line for line in found)


def test_an_affinity_outside_of_the_slices_cpus_keeps_the_vm_from_starting(small):
    small.put("sys/fs/cgroup/qemu.slice/cpuset.cpus", "0-5")
    small.put("sys/fs/cgroup/qemu.slice/cpuset.cpus.effective", "0-5")
    small.vm(100, "cores: 2\naffinity: 6,7")
    small.vm(101, "cores: 2\naffinity: 5,6")
    assert said(
        small, 100, "AllowedCPUs of qemu.slice lets it have: taskset refuses that, the VM cannot start"
    )
    assert not said(small, 101, "cannot start")


def test_a_fence_is_named_once(small):
    small.put("sys/fs/cgroup/qemu.slice/cpuset.cpus", "0-2")
    small.put("sys/fs/cgroup/qemu.slice/cpuset.cpus.effective", "0-2")
    small.settings('[vm.100]\nclass = "dedicated"')
    small.vm(100, "cores: 6")
    assert small.run("plan", "100").count("AllowedCPUs of qemu.slice") == 1


def test_a_vm_that_is_opted_in_and_waits_for_the_first_pass_is_not_called_a_stranger(small):
    small.vm(100, "cores: 2", vcpus=2)
    assert small.findings("others") == []
