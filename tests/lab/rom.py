"""A guest that is nothing but a 64 KiB firmware image: starts every vCPU, and burns or halts each as told.

The image is assembled here from bytes, so that the lab needs no assembler. It is entered at its offset 0 in
real mode by every processor (the reset vector jumps there, the start-up interrupt's page is 0xF0), goes to
flat 32-bit mode and loops. Outside and inside talk through one shared page, which is the memory of an ivshmem
device at PCI address 0:10.0, that is, a file:

    0x00  which vCPUs burn, a bit each; the others halt and look again every 200 ms     written from outside
    0x04  how many vCPUs there may be; APs that have not counted yet are started again  written from outside
    0x08  MiB of memory to touch, from 1 MiB upwards                                    written from outside
    0x0C  MiB touched so far                                                            written by vCPU 0
    0x10  1: power off, 2: reset                                                        written from outside
    0x100 + 4 i   how often vCPU i went round its loop                                  written by vCPU i

A vCPU's number is its APIC id, which is its index when there is one socket. Rules: Intel SDM volume 3,
chapters 10 and 12; PIIX4 datasheet for the power management registers of the machine type "pc".
"""

import re
import struct

SIZE = 0x10000
PAGE_BYTES = 4096
BURN, VCPUS, WANT_MIB, TOUCHED_MIB, COMMAND, COUNTERS = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x100
POWER_OFF, RESET = 1, 2

_LOW = 0xF0000
_TIMER_VECTOR = 0x20

# label: bytes ; what they mean. ~x and @x: 8 and 32 bits relative to what follows; =x: 32-bit address;
# #x: 16-bit offset.
_PROGRAM = """\
start:   fa                             ; cli
         2e 66 0f 01 16 #gdtr           ; lgdtl %cs:gdtr
         0f 20 c0                       ; movl %cr0,%eax
         0c 01                          ; orb $1,%al
         0f 22 c0                       ; movl %eax,%cr0
         66 ea =prot 08 00              ; ljmpl $8,$0xF0000+prot
prot:    66 b8 10 00                    ; movw $0x10,%ax
         8e d8                          ; movw %ax,%ds
         8e c0                          ; movw %ax,%es
         8e d0                          ; movw %ax,%ss
         8b 1d 20 00 e0 fe              ; movl 0xFEE00020,%ebx
         c1 eb 18                       ; shrl $24,%ebx
         89 dc                          ; movl %ebx,%esp
         c1 e4 08                       ; shll $8,%esp
         81 c4 00 81 00 00              ; addl $0x8100,%esp
         0f 01 1d =idtr                 ; lidtl 0xF0000+idtr
         be 00 00 00 e0                 ; movl $0xE0000000,%esi
         85 db                          ; testl %ebx,%ebx
         75 ~timer                      ; jnz timer
         b0 ff                          ; movb $0xFF,%al
         e6 21                          ; outb %al,$0x21
         e6 a1                          ; outb %al,$0xA1
         b8 18 80 00 80                 ; movl $0x80008018,%eax
         89 f1                          ; movl %esi,%ecx
         e8 @config                     ; call config
         b8 1c 80 00 80                 ; movl $0x8000801C,%eax
         31 c9                          ; xorl %ecx,%ecx
         e8 @config                     ; call config
         b8 04 80 00 80                 ; movl $0x80008004,%eax
         b9 02 00 00 00                 ; movl $2,%ecx
         e8 @config                     ; call config
         8d be 00 01 00 00              ; leal 0x100(%esi),%edi
         31 c0                          ; xorl %eax,%eax
         b9 20 00 00 00                 ; movl $32,%ecx
         f3 ab                          ; rep stosl
         89 46 0c                       ; movl %eax,0xC(%esi)
         a3 00 70 00 00                 ; movl %eax,0x7000
         a3 04 70 00 00                 ; movl %eax,0x7004
timer:   bf 00 00 e0 fe                 ; movl $0xFEE00000,%edi
         c7 87 f0 00 00 00 ff 01 00 00  ; movl $0x1FF,0xF0(%edi)
         c7 87 50 03 00 00 00 00 01 00  ; movl $0x10000,0x350(%edi)
         c7 87 e0 03 00 00 03 00 00 00  ; movl $3,0x3E0(%edi)
         c7 87 20 03 00 00 20 00 02 00  ; movl $0x20020,0x320(%edi)
         c7 87 80 03 00 00 20 bc be 00  ; movl $12500000,0x380(%edi)
loop:    ff 84 9e 00 01 00 00           ; incl 0x100(%esi,%ebx,4)
         85 db                          ; testl %ebx,%ebx
         75 ~work                       ; jnz work
         e8 @service                    ; call service
work:    0f a3 1e                       ; btl %ebx,(%esi)
         fb                             ; sti
         72 ~burn                       ; jc burn
         f4                             ; hlt
         fa                             ; cli
         eb ~loop                       ; jmp loop
burn:    b9 a0 86 01 00                 ; movl $100000,%ecx
spin:    49                             ; decl %ecx
         75 ~spin                       ; jnz spin
         fa                             ; cli
         eb ~loop                       ; jmp loop
config:  66 ba f8 0c                    ; movw $0xCF8,%dx
         ef                             ; outl %eax,%dx
         89 c8                          ; movl %ecx,%eax
         66 ba fc 0c                    ; movw $0xCFC,%dx
         ef                             ; outl %eax,%dx
         c3                             ; ret
service: 8b 46 10                       ; movl 0x10(%esi),%eax
         3c 01                          ; cmpb $1,%al
         74 ~off                        ; je off
         3c 02                          ; cmpb $2,%al
         75 ~touch                      ; jne touch
         c6 46 10 00                    ; movb $0,0x10(%esi)
         b0 06                          ; movb $6,%al
         66 ba f9 0c                    ; movw $0xCF9,%dx
         ee                             ; outb %al,%dx
stop:    eb ~stop                       ; jmp stop
off:     b8 40 0b 00 80                 ; movl $0x80000B40,%eax
         b9 01 06 00 00                 ; movl $0x601,%ecx
         e8 @config                     ; call config
         b8 80 0b 00 80                 ; movl $0x80000B80,%eax
         b9 01 00 00 00                 ; movl $1,%ecx
         e8 @config                     ; call config
         b8 00 20 00 00                 ; movl $0x2000,%eax
         66 ba 04 06                    ; movw $0x604,%dx
         66 ef                          ; outw %ax,%dx
touch:   8b 7e 0c                       ; movl 0xC(%esi),%edi
         8b 4e 08                       ; movl 8(%esi),%ecx
         39 f9                          ; cmpl %edi,%ecx
         76 ~touched                    ; jbe touched
         c1 e7 14                       ; shll $20,%edi
         c1 e1 14                       ; shll $20,%ecx
fill:    c6 87 00 00 10 00 01           ; movb $1,0x100000(%edi)
         81 c7 00 10 00 00              ; addl $0x1000,%edi
         39 cf                          ; cmpl %ecx,%edi
         72 ~fill                       ; jb fill
touched: 8b 46 08                       ; movl 8(%esi),%eax
         89 46 0c                       ; movl %eax,0xC(%esi)
         a1 00 70 00 00                 ; movl 0x7000,%eax
         3b 05 04 70 00 00              ; cmpl 0x7004,%eax
         72 ~served                     ; jb served
         83 c0 10                       ; addl $16,%eax
         a3 04 70 00 00                 ; movl %eax,0x7004
         31 c9                          ; xorl %ecx,%ecx
         bf 00 00 e0 fe                 ; movl $0xFEE00000,%edi
next:    41                             ; incl %ecx
         3b 4e 04                       ; cmpl 4(%esi),%ecx
         73 ~served                     ; jae served
         83 bc 8e 00 01 00 00 00        ; cmpl $0,0x100(%esi,%ecx,4)
         75 ~next                       ; jne next
         89 c8                          ; movl %ecx,%eax
         c1 e0 18                       ; shll $24,%eax
         89 87 10 03 00 00              ; movl %eax,0x310(%edi)
         c7 87 00 03 00 00 00 45 00 00  ; movl $0x4500,0x300(%edi)
         89 87 10 03 00 00              ; movl %eax,0x310(%edi)
         c7 87 00 03 00 00 f0 46 00 00  ; movl $0x46F0,0x300(%edi)
         eb ~next                       ; jmp next
served:  c3                             ; ret
tick:    50                             ; pushl %eax
         c7 05 b0 00 e0 fe 00 00 00 00  ; movl $0,0xFEE000B0
         85 db                          ; testl %ebx,%ebx
         75 ~other                      ; jnz other
         ff 05 00 70 00 00              ; incl 0x7000
other:   58                             ; popl %eax
         cf                             ; iretl
"""

_FLAT_CODE, _FLAT_DATA = 0x00CF9B000000FFFF, 0x00CF93000000FFFF
_TOKEN = re.compile(r"([~@=#])(\w+)$")
_WIDTH = {"~": 1, "@": 4, "=": 4, "#": 2}


def image() -> bytes:
    """The file to hand to QEMU's -bios."""
    lines = [_line(text) for text in _PROGRAM.splitlines()]
    labels, end = _addresses(lines)
    labels |= {"gdt": _aligned(end), "idt": _aligned(end) + 24}
    labels |= {
        "gdtr": labels["idt"] + 8 * (_TIMER_VECTOR + 1),
        "idtr": labels["idt"] + 8 * (_TIMER_VECTOR + 1) + 8,
    }
    rom = bytearray(SIZE)
    at = 0
    for _, tokens in lines:
        for token in tokens:
            encoded = _encode(token, at, labels)
            rom[at : at + len(encoded)] = encoded
            at += len(encoded)
    struct.pack_into("<QQQ", rom, labels["gdt"], 0, _FLAT_CODE, _FLAT_DATA)
    handler = _LOW + labels["tick"]
    gate = (handler & 0xFFFF, 0x08, 0x8E00, handler >> 16)
    struct.pack_into("<HHHH", rom, labels["idt"] + 8 * _TIMER_VECTOR, *gate)
    struct.pack_into("<HI", rom, labels["gdtr"], 24 - 1, _LOW + labels["gdt"])
    struct.pack_into("<HI", rom, labels["idtr"], 8 * (_TIMER_VECTOR + 1) - 1, _LOW + labels["idt"])
    rom[0xFFF0:0xFFF5] = b"\xea" + struct.pack("<HH", 0, _LOW >> 4)
    return bytes(rom)


def page(*, vcpus: int, burning: int = 0) -> bytes:
    """The shared page as it should be when the guest starts."""
    first = bytearray(PAGE_BYTES)
    struct.pack_into("<II", first, BURN, burning, vcpus)
    return bytes(first)


def _line(text: str) -> tuple[str, list[str]]:
    code = text.partition(";")[0]
    label, found, rest = code.partition(":")
    return (label.strip(), rest.split()) if found else ("", code.split())


def _addresses(lines: list[tuple[str, list[str]]]) -> tuple[dict[str, int], int]:
    labels: dict[str, int] = {}
    at = 0
    for label, tokens in lines:
        if label:
            labels[label] = at
        at += sum(_WIDTH.get(token[0], 1) for token in tokens)
    return labels, at


def _encode(token: str, at: int, labels: dict[str, int]) -> bytes:
    match = _TOKEN.match(token)
    if not match:
        return bytes.fromhex(token)
    kind, name = match.groups()
    target = labels[name]
    if kind == "~":
        return struct.pack("<b", target - at - 1)
    if kind == "@":
        return struct.pack("<i", target - at - 4)
    if kind == "=":
        return struct.pack("<I", _LOW + target)
    return struct.pack("<H", target)


def _aligned(value: int) -> int:
    return (value + 15) & ~15
