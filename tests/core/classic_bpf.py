"""Classic BPF, run by hand: as much of it as steering needs, and as its documentation says.

Source: Linux Documentation/networking/filter.rst. A word is 32 bits; jumps go forward only.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.steering import Instruction

NET = -0x100000
WORD = 0xFFFFFFFF

# Class, then what it does with A and its operand.
ARITHMETIC = {
    0x20: lambda a, b: a * b,
    0x50: lambda a, b: a & b,
    0x70: lambda a, b: a >> b,
    0x90: lambda a, b: a % b,
    0xA0: lambda a, b: a ^ b,
}


def run(program: Sequence[Instruction], packet: bytes) -> int:
    """What the program answers for a packet that begins with its network header."""
    a = x = at = 0
    memory: dict[int, int] = {}
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        operand = x if code & 0x08 else k
        match code & 0x07, code & 0xF8:
            case 0, 0x00:
                a = k
            case 0, 0x20:
                a = load(packet, k, 4)
            case 0, 0x30:
                a = load(packet, k, 1)
            case 1, 0x60:
                x = memory[k]
            case 2, 0:
                memory[k] = a
            case 4, _:
                a = ARITHMETIC[code & 0xF0](a, operand) & WORD
            case 5, 0x10:
                at += if_true if a == k else if_false
            case 6, 0x10:
                return a
            case 7, 0x00:
                x = a
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def load(packet: bytes, k: int, size: int) -> int:
    start = (k - (1 << 32) if k >> 31 else k) - NET
    assert 0 <= start <= len(packet) - size, "outside the header: the kernel would return 0"
    return int.from_bytes(packet[start : start + size])
