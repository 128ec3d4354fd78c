"""What the lab is made of: the packages, files and kernel options whose hash names the cached image.

Everything here ends up in the hash, so that a changed recipe builds a new image and an unchanged one is found
again. What changes often (the agent, the stand-in for Proxmox) is not here: it reaches the lab with the
checkout.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

_BUILDERS = ("acpi.py", "cpio.py", "image.py", "kernel.py")

SUITE = "trixie"
NODE = "lab"
CPUS = 16

_PACKAGES = """
    busybox-static dbus dma iproute2 irqbalance kmod linux-image-amd64 numactl nvme-cli pciutils procps
    psmisc python3 python3-filelock python3-proxmoxer python3-psutil python3-pyroute2 python3-requests
    qemu-system-x86 strace systemd-sysv udev util-linux util-linux-extra zstd
"""

# Services that cost boot time under emulation and do nothing for the lab.
_MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer
    getty@tty1.service ldconfig.service serial-getty@ttyS0.service serial-getty@hvc0.service
    systemd-logind.service
    systemd-update-utmp.service systemd-networkd.service systemd-networkd.socket
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount nvmf-autoconnect.service
    nvmefc-boot-connections.service systemd-pcrphase.service systemd-random-seed.service
    modprobe@drm.service
"""

# vhost_net and tun for guests' network, 9p for the checkout, msr only for completeness of what a node has.
MODULES = (
    "virtio_console", "9p", "9pnet_virtio", "acpi_cpufreq", "cpufreq_powersave", "cpufreq_ondemand",
    "cpufreq_conservative", "kvm_amd", "vfio_pci", "tun", "vhost_net",
)  # fmt: skip

# The few modules the initramfs needs to mount the root; their dependencies are resolved from modules.dep.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")

KERNEL_OPTIONS = (
    "quiet nokaslr mitigations=off psi=1 schedstats=enable intel_iommu=on iommu=pt "
    "cryptomgr.notests tsc=reliable no_timer_check systemd.show_status=0 panic=-1 console=ttyS0 "
    "root=/dev/vda rw net.ifnames=0 audit=0 nowatchdog"
)

CHECKOUT_UNIT = """\
[Unit]
Description=The checkout under test
DefaultDependencies=no
After=systemd-modules-load.service
Before=lab-agent.service

[Mount]
What=checkout
Where=/lab/checkout
Type=9p
Options=trans=virtio,version=9p2000.L,cache=none,ro,msize=262144
"""

STATE_UNIT = """\
[Unit]
Description=Files handed in and out of the lab
DefaultDependencies=no
After=systemd-modules-load.service
Before=lab-agent.service

[Mount]
What=state
Where=/lab/state
Type=9p
Options=trans=virtio,version=9p2000.L,cache=none,msize=262144
"""

AGENT_UNIT = """\
[Unit]
Description=Runs what the tests ask for
Requires=lab-checkout.mount lab-state.mount
After=lab-checkout.mount lab-state.mount systemd-modules-load.service sysinit.target dbus.service

[Service]
ExecStart=/usr/bin/python3 -I /lab/checkout/tests/lab/inside/agent.py
Restart=always
RestartSec=1
KillMode=process
OOMScoreAdjust=-900
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
"""

CONSOLE_UNIT = """\
[Unit]
Description=A shell for the person at the lab's second console
After=multi-user.target
ConditionPathExists=/dev/hvc0

[Service]
ExecStart=-/bin/bash -l
Environment=TERM=xterm HOME=/root
WorkingDirectory=/root
Restart=always
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/hvc0
TTYReset=yes

[Install]
WantedBy=multi-user.target
"""


def _node_files() -> dict[str, str]:
    """Files written into the image; a value starting with '-> ' makes a symbolic link."""
    return {
        "etc/hostname": f"{NODE}\n",
        "etc/hosts": f"127.0.0.1 localhost {NODE}\n",
        # /etc/pve is a mount point, as pmxcfs makes it.
        "etc/fstab": "hugetlbfs /run/hugepages/kvm/2048kB hugetlbfs pagesize=2M,nofail,x-mount.mkdir 0 0\n"
        "/etc/pve /etc/pve none bind 0 0\n",
        "etc/machine-id": "uninitialized\n",
        "etc/modules-load.d/lab.conf": "\n".join(MODULES) + "\n",
        "etc/modprobe.d/lab.conf": "blacklist igbvf\ninstall cfg80211 /bin/true\noptions kvm_amd nested=0\n",
        "etc/default/irqbalance": 'IRQBALANCE_ARGS="--interval=5"\n',
        "etc/systemd/system/lab-checkout.mount": CHECKOUT_UNIT,
        "etc/systemd/system/lab-state.mount": STATE_UNIT,
        "etc/systemd/system/lab-agent.service": AGENT_UNIT,
        "etc/systemd/system/lab-console.service": CONSOLE_UNIT,
        "etc/systemd/system/multi-user.target.wants/lab-agent.service": "-> ../lab-agent.service",
        "etc/systemd/system/multi-user.target.wants/lab-console.service": "-> ../lab-console.service",
        "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=volatile\nRateLimitBurst=0\n",
        "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStopSec=15s\n",
        "etc/pve/local": f"-> nodes/{NODE}",
        "etc/pve/qemu-server": f"-> nodes/{NODE}/qemu-server",
        f"etc/pve/nodes/{NODE}/qemu-server/.keep": "",
        "etc/pve/storage.cfg": "dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,backup,snippets\n",
        "etc/.updated": "",
        "var/.updated": "",
        "var/lib/vz/snippets/.keep": "",
        "lab/checkout/.keep": "",
        "lab/state/.keep": "",
        "usr/local/bin/qm": "-> /lab/checkout/tests/lab/inside/qm",
        "usr/bin/pvesh": "-> /lab/checkout/tests/lab/inside/pvesh",
        "usr/bin/kvm": "-> qemu-system-x86_64",
    }


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image: what is installed and what is written over it."""

    suite: str = SUITE
    packages: tuple[str, ...] = tuple(_PACKAGES.split())
    masked: tuple[str, ...] = tuple(_MASKED.split())
    boot_modules: tuple[str, ...] = BOOT_MODULES
    files: dict[str, str] = field(default_factory=_node_files)
    disk_mib: int = 4096

    def key(self) -> str:
        """A short name that changes with anything above, and with the modules that build the image."""
        builders = "".join((Path(__file__).parent / name).read_text() for name in _BUILDERS)
        text = json.dumps(asdict(self), sort_keys=True) + builders
        return f"{self.suite}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


HOST = Recipe()
# Proxmox VE 8's Debian, booted by the other image's QEMU.
OLDER_HOST = Recipe(suite="bookworm")
