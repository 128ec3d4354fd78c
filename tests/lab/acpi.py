"""A frequency governor for a virtual machine: an ACPI table that gives every processor performance states.

The kernel's acpi-cpufreq then drives "frequencies" through an I/O port nobody listens to: nothing gets
faster, but the governor, its files and their permissions are the real ones. _PSD groups the processors the
way cores share a clock: the two threads of a core together, so that a policy covers more than one CPU, as on
real machines. Rules: ACPI 6.5, section 8.4.5.
"""

import subprocess
from pathlib import Path

_PORT = 0x0880
_FREQUENCIES_MHZ = (3000, 2400, 1800, 1200)
_COORDINATION_ANY_CPU = 0xFD


def table_source(cpus: int, *, cpus_per_core: int) -> str:
    """ASL of an SSDT that extends QEMU's own processor devices."""
    names = [f"\\_SB.CPUS.C{cpu:03X}" for cpu in range(cpus)]
    externals = "\n".join(f"  External ({name}, DeviceObj)" for name in names)
    scopes = "\n".join(_scope(name, cpu // cpus_per_core, cpus_per_core) for cpu, name in enumerate(names))
    return f'DefinitionBlock ("ssdt.aml", "SSDT", 2, "LAB", "CPUFREQ", 1)\n{{\n{externals}\n{scopes}\n}}\n'


def _scope(name: str, domain: int, members: int) -> str:
    register = f"ResourceTemplate () {{ Register (SystemIO, 16, 0, 0x{_PORT:04X}) }}"
    states = ", ".join(
        f"Package () {{ {mhz}, {mhz * 10}, 10, 10, 0x{state:02X}, 0x{state:02X} }}"
        for state, mhz in enumerate(_FREQUENCIES_MHZ)
    )
    dependency = f"5, 0, {domain}, 0x{_COORDINATION_ANY_CPU:X}, {members}"
    return (
        f"  Scope ({name}) {{\n"
        f"    Name (_PCT, Package () {{ {register}, {register} }})\n"
        f"    Name (_PSS, Package () {{ {states} }})\n"
        f"    Name (_PSD, Package () {{ Package () {{ {dependency} }} }})\n"
        "    Method (_PPC) { Return (0) }\n"
        "  }"
    )


def compile_table(source: str, target: Path) -> None:
    """Leaves the binary table in `target`."""
    text = target.with_suffix(".asl")
    text.write_text(source)
    command = ["iasl", "-p", str(target.with_suffix("")), str(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"iasl: {done.stdout}{done.stderr}")
