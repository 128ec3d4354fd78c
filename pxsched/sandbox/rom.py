"""A guest that boots at once: a 64 KiB BIOS image which starts every vCPU and lets each burn or sleep.

The guest's memory is a file, so the host sets a byte per vCPU (1 = burn, 0 = halt) and reads counters back
while it runs. Sleeping vCPUs cost nothing: there is no timer. The host wakes the guest by an NMI; the boot
CPU answers with INIT and SIPI to all others, so hot-plugged vCPUs come to life the same way.

Rules: Intel SDM volume 3, chapter 9 (processor initialisation) and 11 (local APIC registers); QEMU's APIC
id is the package in the upper bits and the core in the lower, each rounded up to a power of two.
"""

from struct import pack
from typing import Final

ROM_BYTES: Final = 0x10000
ROM_ADDRESS: Final = 0xF0000
WISH_ADDRESS: Final = 0x8000
"""One byte per APIC id, written by the host: burn or not."""
ALIVE_ADDRESS: Final = 0x8100
"""One byte per APIC id, set to 1 by a vCPU that came up."""
COUNTER_ADDRESS: Final = 0x9000
"""One 32-bit number per APIC id, counting the rounds of the burning loop."""
MOST_CPUS: Final = 255

_BOOT = 0x100
_GDT = 0x200
_GDT_POINTER = 0x220
_RESET = 0xFFF0

_NMI_VECTOR = 2 * 4
_LAPIC_SPURIOUS = 0xFEE000F0
_LAPIC_COMMAND = 0xFEE00300
_LAPIC_LINT1 = 0xFEE00360
_INIT_ALL_OTHERS = 0x000C4500
_STARTUP_ALL_OTHERS = 0x000C4600 | ROM_ADDRESS >> 12
_FLAT_SELECTOR = 0x08


def apic_id(vcpu: int, cores: int) -> int:
    """The APIC id of the vCPU with this index, for packages of `cores` cores without SMT."""
    return (vcpu // cores) << (cores - 1).bit_length() | vcpu % cores


def image() -> bytes:
    """The BIOS image."""
    rom = bytearray(b"\xf4" * ROM_BYTES)  # hlt everywhere else
    parts = {
        0: _other_cpu(),
        _BOOT: _boot_cpu(),
        _GDT: pack("<QQ", 0, 0x00CF93000000FFFF),
        _GDT_POINTER: pack("<HI", 15, ROM_ADDRESS + _GDT),
        _RESET: b"\xea" + pack("<HH", _BOOT, ROM_ADDRESS >> 4),  # jmp far F000:_BOOT
    }
    for offset, code in parts.items():
        rom[offset : offset + len(code)] = code
    return bytes(rom)


def _other_cpu() -> bytes:
    """From a SIPI: mark alive, then burn while asked to, else halt until the next INIT."""
    return _start() + _announce() + _loop()


def _boot_cpu() -> bytes:
    """From reset: let the NMI through, start the others, then do as they do.

    Real mode all the way, since a KVM that emulates every instruction knows no protected-mode iret; only
    FS is made to reach the whole address space, for the local APIC.
    """
    setup = (
        _start()
        + b"\x8e\xd0\xbc\x00\x70"  # mov ss, ax (0); mov sp, 0x7000
        + b"\x2e\x66\x0f\x01\x16" + pack("<H", _GDT_POINTER)  # lgdt [cs:GDT_POINTER]
        + b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"  # cr0 |= 1: protected mode
        + b"\xba" + pack("<H", _FLAT_SELECTOR) + b"\x8e\xe2"  # mov dx, FLAT; mov fs, dx
        + b"\x24\xfe\x0f\x22\xc0"  # cr0 &= ~1: real mode, FS keeps its limit
        + _store(_LAPIC_SPURIOUS, 0x1FF)  # switch the local APIC on
        + _store(_LAPIC_LINT1, 0x400)  # the NMI line is delivered as NMI
    )  # fmt: skip
    wake = _wake_others()
    before_loop = len(setup) + 9 + len(wake) + len(_announce())
    handler = _BOOT + before_loop + len(_loop())
    setup += b"\x66\xc7\x06" + pack("<HHH", _NMI_VECTOR, handler, ROM_ADDRESS >> 4)  # set vector 2
    assert len(setup) + len(wake) + len(_announce()) == before_loop
    # Back to the loop's test, wherever the NMI came: one between test and hlt must not be lost.
    again = b"\x89\xe5\xc7\x46\x00" + pack("<H", _BOOT + before_loop) + b"\xcf"  # mov [sp], loop; iret
    return setup + wake + _announce() + _loop() + wake + again


def _start() -> bytes:
    return b"\xfa\x31\xc0\x8e\xd8"  # cli; xor ax, ax; mov ds, ax


def _announce() -> bytes:
    """ebx = own APIC id; say that this vCPU lives."""
    identify = b"\x66\xb8\x01\x00\x00\x00\x0f\xa2\x66\xc1\xeb\x18"  # mov eax, 1; cpuid; shr ebx, 24
    return identify + b"\xc6\x87" + pack("<HB", ALIVE_ADDRESS, 1)  # mov byte [bx + ALIVE], 1


def _loop() -> bytes:
    """while true: count if this vCPU is to burn, else halt."""
    test = b"\x80\xbf" + pack("<HB", WISH_ADDRESS, 0)  # cmp byte [bx + WISH], 0
    count = b"\x67\x66\xff\x04\x9d" + pack("<I", COUNTER_ADDRESS)  # inc dword [ebx*4 + COUNTER]
    burn = count + b"\xeb" + pack("b", -(len(test) + 2 + len(count) + 2))  # jmp test
    halt = b"\xf4\xeb" + pack("b", -(len(test) + 2 + len(burn) + 3))  # hlt; jmp test
    return test + b"\x74" + pack("b", len(burn)) + burn + halt  # je halt


def _wake_others() -> bytes:
    """INIT, then SIPI, to every CPU but this one, with time between them to take effect."""
    pause = b"\xb9\x00\x40\x49\x75\xfd"  # mov cx, 0x4000; dec cx; jnz
    return _store(_LAPIC_COMMAND, _INIT_ALL_OTHERS) + pause + _store(_LAPIC_COMMAND, _STARTUP_ALL_OTHERS)


def _store(address: int, value: int) -> bytes:
    """mov dword [fs:address], value"""
    return b"\x64\x67\x66\xc7\x05" + pack("<II", address, value)
