"""A plain mutator: right samples, made wrong by a few small steps, the same ones each time.

A target is a function that takes bytes, and raises where its invariant does not hold.
As a test it runs for ``SECONDS``; by hand, as long as one likes, and then with another seed:

    SOCKPAIR_FUZZ=600 python -m pytest -q tests/fuzz
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from random import Random, SystemRandom
from time import monotonic
from typing import Final

SECONDS: Final = float(os.environ.get("SOCKPAIR_FUZZ", "0"))
"""Zero: ``CASES`` cases, with a fixed seed, which no load of the machine makes fewer."""

CASES: Final = 4000
STEPS_MAX: Final = 4

NUMBERS: Final = (0, 1, 2, 3, 4, 127, 128, 254, 255)
"""Bytes at which readers of lengths go wrong."""


def run(target: Callable[[bytes], None], samples: Sequence[bytes]) -> None:
    """Try the samples, and then mutations of them; the failing case is told by its bytes."""
    seed = SystemRandom().getrandbits(32) if SECONDS else 1
    random, until, cases = Random(seed), monotonic() + SECONDS, 0
    for sample in samples:
        target(sample)
    while cases < CASES or monotonic() < until:
        cases += 1
        data = mutated(random, samples)
        try:
            target(data)
        except Exception as error:
            raise AssertionError(f"seed {seed}, case {cases}: {data!r}") from error


def mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    """A sample after a few steps."""
    data = bytearray(random.choice(samples))
    for _ in range(random.randint(1, STEPS_MAX)):
        random.choice(STEPS)(random, data, samples)
    return bytes(data)


def _flip(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice(NUMBERS)


def _insert(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    at = random.randint(0, len(data))
    data[at:at] = random.randbytes(random.randint(1, 8))


def _remove(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    at = random.randint(0, len(data))
    del data[at : at + random.randint(1, 8)]


def _cut(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    del data[random.randint(0, len(data)) :]


def _repeat(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    at = random.randint(0, len(data))
    data[at:at] = data[at : at + random.randint(1, 300)]


def _cross(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    other = random.choice(samples)
    data[random.randint(0, len(data)) :] = other[random.randint(0, len(other)) :]


STEPS: Final = (_flip, _set, _insert, _remove, _cut, _repeat, _cross)
