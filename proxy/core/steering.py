"""Which of several workers a client belongs to, as a classic BPF program for the kernel to run.

All members of a SO_REUSEPORT group have one address, and the program chooses among them by the
*source prefix* of a packet alone: not by its port, and not by its transport. So one worker sees
everything that a source does, limits per source stay exact without shared memory, and a datagram
finds the worker that has its flow.

Invariants: the index is always less than the number of workers; equal prefixes have equal indices;
neighbouring prefixes spread evenly. For the last the prefix is mixed as MurmurHash3 ends (every
bit of the input turns half of those of the output), so that the rest of a division, of all 32 bits,
is fair for any number of workers. One multiplication and a shift would do for consecutive
addresses, but not for a /24 in steps of 256 and for both words of an IPv6 prefix together.

The network header is read at SKF_NET_OFF, because the packet begins elsewhere: TCP's program sees
it from its payload on. Its version comes first, since a dual-stack socket receives IPv4 as well.
An IPv4 client is masked as IPv4 there, as it is shown and limited.

Source: Linux Documentation/networking/filter.rst, uapi/linux/filter.h, bpf_common.h; RFC 791 3.1,
RFC 8200 3; MurmurHash3 fmix32, of the public domain.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

LOAD_IMMEDIATE: Final = 0x00
LOAD_BYTE: Final = 0x30
LOAD_WORD: Final = 0x20
STORE: Final = 0x02
LOAD_X_STORED: Final = 0x61
COPY_TO_X: Final = 0x07
AND: Final = 0x54
SHIFT_RIGHT: Final = 0x74
MULTIPLY: Final = 0x24
MODULO: Final = 0x94
XOR_X: Final = 0xAC
JUMP_IF_EQUAL: Final = 0x15
RETURN_A: Final = 0x16
RETURN_K: Final = 0x06

NET: Final = 0xFFF00000
"""SKF_NET_OFF, -0x100000 as the kernel has it in 32 bits: offsets from the network header."""

SOURCE_V4: Final = 12
SOURCE_V6: Final = 8
BITS_V4: Final = 32
BITS_V6: Final = 128

WORD_BITS: Final = 32
WORD: Final = 0xFFFFFFFF

MIXING: Final = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
LAST_SHIFT: Final = 16
"""Of MurmurHash3: shifts, and by what is multiplied."""

WORKERS_MAX: Final = 64
"""A worker wants a core of its own; one socket of each listener belongs to each."""

INSTRUCTION: Final = struct.Struct("=HBBI")


class Instruction(NamedTuple):
    """``struct sock_filter``: where to go on if the comparison is true, and if not; and a value."""

    code: int
    if_true: int
    if_false: int
    value: int


def steering_program(
    workers: int, prefix_v4: int = BITS_V4, prefix_v6: int = 64
) -> tuple[Instruction, ...]:
    """Make the program that names a packet's worker by its source.

    Args:
        workers: members of the group, 1 to ``WORKERS_MAX``.
        prefix_v4: bits of an IPv4 address that name its source, 0 to 32.
        prefix_v6: the same of IPv6, 0 to 128.

    """
    assert 1 <= workers <= WORKERS_MAX, workers
    assert 0 <= prefix_v4 <= BITS_V4, prefix_v4
    assert 0 <= prefix_v6 <= BITS_V6, prefix_v6
    v4 = [*_source(SOURCE_V4, prefix_v4), *_rest(workers)]
    v6 = [*_source(SOURCE_V6, prefix_v6), *_rest(workers)]
    return (
        _step(LOAD_BYTE, NET),
        _step(SHIFT_RIGHT, 4),
        Instruction(JUMP_IF_EQUAL, len(v4), 0, 6),
        *v4,
        *v6,
    )


def worker_of(
    source: IPv4Address | IPv6Address,
    workers: int,
    prefix_v4: int = BITS_V4,
    prefix_v6: int = 64,
) -> int:
    """Which worker the kernel gives a client to; what ``steering_program`` says, in numbers.

    Args:
        source: the client, as its packets have it.
        workers: as of the program.
        prefix_v4: the same.
        prefix_v6: the same.

    """
    number, size = int(source), source.max_prefixlen
    mixed = 0
    for index, mask in enumerate(_masks(prefix_v4 if source.version == 4 else prefix_v6)):
        mixed ^= number >> size - WORD_BITS * (index + 1) & mask
        for shift, factor in MIXING:
            mixed = (mixed ^ mixed >> shift) * factor & WORD
        mixed ^= mixed >> LAST_SHIFT
    return mixed % workers


def encode(program: Sequence[Instruction]) -> bytes:
    """The program as the kernel reads it: an array of ``struct sock_filter``."""
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in program)


def _source(offset: int, prefix: int) -> Iterator[Instruction]:
    """Leave in A the mixed first bits of the address at this offset; 0 if none count."""
    yield _step(LOAD_IMMEDIATE, 0)
    for index, mask in enumerate(_masks(prefix)):
        yield _step(STORE, 0)
        yield _step(LOAD_WORD, NET + offset + 4 * index)
        yield _step(AND, mask)
        yield _step(LOAD_X_STORED, 0)
        yield _step(XOR_X)
        yield from _mix()


def _masks(prefix: int) -> Iterator[int]:
    """What counts of each word of an address, as far as anything does."""
    for bits in range(prefix, 0, -WORD_BITS):
        yield WORD >> min(bits, WORD_BITS) ^ WORD


def _mix() -> Iterator[Instruction]:
    """The end of MurmurHash3 on A: a permutation of 32 bits, in which every bit counts for all."""
    for shift, factor in MIXING:
        yield from _fold(shift)
        yield _step(MULTIPLY, factor)
    yield from _fold(LAST_SHIFT)


def _fold(shift: int) -> Iterator[Instruction]:
    yield _step(COPY_TO_X)
    yield _step(SHIFT_RIGHT, shift)
    yield _step(XOR_X)


def _rest(workers: int) -> Iterator[Instruction]:
    yield _step(MODULO, workers)
    yield _step(RETURN_A)


def _step(code: int, value: int = 0) -> Instruction:
    return Instruction(code, 0, 0, value)
