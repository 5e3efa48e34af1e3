"""Durations, sizes, bandwidths and rates: the text people write, the numbers that we count with.

One grammar for all of them: a whole number and its unit, without a space. Fractions are refused,
so that what is read is exactly what was meant ("1500ms", not "1.5s"); only a duration may have
several parts, the greater unit first ("1h30m"). Inside, durations are seconds, sizes are bytes,
and both rates are per second.

Every parser raises ``ValueError`` and nothing else, whatever the text; the message names what was
found and what was expected. Every value has a ceiling, far above any use and far below the place
where a float loses whole numbers or a kernel field overflows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_MILLISECONDS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
SIZE_UNITS: Final = tuple(_BYTES)
_BITS: Final = {"bit": 1, "kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9, "Tbit": 10**12}
BANDWIDTH_UNITS: Final = tuple(f"{unit}/s" for unit in (*_BYTES, *_BITS))
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}

# The same patterns serve the JSON Schema of the configuration, hence no named groups.
DURATION_PATTERN: Final = "(?=[0-9])" + "".join(f"(?:([0-9]+){unit})?" for unit in _MILLISECONDS)
SIZE_PATTERN: Final = f"([0-9]+)({'|'.join(_BYTES)})|0"
BANDWIDTH_PATTERN: Final = f"([0-9]+)({'|'.join([*_BYTES, *_BITS])})/s"
RATE_PATTERN: Final = f"([0-9]+)/({'|'.join(_SECONDS)})"

_DURATION: Final = re.compile(DURATION_PATTERN)
_SIZE: Final = re.compile(SIZE_PATTERN)
_BANDWIDTH: Final = re.compile(BANDWIDTH_PATTERN)
_RATE: Final = re.compile(RATE_PATTERN)

TEXT_MAX: Final = 64
"""Characters; no value within the ceilings needs half as many."""

DURATION_MAX: Final = 36_500 * 86_400
"""Seconds, a hundred years: monotonic time in a float is still finer than a microsecond."""

SIZE_MAX: Final = 2**53
"""Bytes, 8 PiB: the last place up to which a float, and so JSON, holds every whole number."""

BANDWIDTH_MAX: Final = 10**14 / 8
"""Bytes per second, 100 Tbit/s."""

RATE_MAX: Final = 10**9
"""Events per second."""


def parse_duration(text: str) -> float:
    """Read ``"500ms"``, ``"30s"``, ``"2d"`` or ``"1h30m"`` as seconds.

    Raises:
        ValueError: it is no duration, or longer than ``DURATION_MAX``.

    """
    match = _match(_DURATION, text, "a duration", '"30s", "500ms" or "1h30m"')
    counts = zip(match.groups(), _MILLISECONDS.values(), strict=True)
    milliseconds = sum(int(count) * unit for count, unit in counts if count)
    if milliseconds > DURATION_MAX * 1000:
        raise ValueError(f'"{text}" is too long: a duration is at most 36500d')
    return milliseconds / 1000


def parse_size(text: str) -> int:
    """Read ``"64KiB"``, ``"5MB"``, ``"123B"`` or ``"0"`` as bytes.

    Raises:
        ValueError: it is no size, or more than ``SIZE_MAX``.

    """
    match = _match(_SIZE, text, "a size", '"64KiB", "10MB" or "512B"', SIZE_UNITS)
    count, unit = match.groups()
    size = int(count) * _BYTES[unit] if unit else 0
    if size > SIZE_MAX:
        raise ValueError(f'"{text}" is too large: a size is at most 8192TiB')
    return size


def parse_bandwidth(text: str) -> float:
    """Read ``"10MiB/s"`` or ``"1Gbit/s"`` as bytes per second.

    Raises:
        ValueError: it is no bandwidth, zero, or more than ``BANDWIDTH_MAX``.

    """
    match = _match(_BANDWIDTH, text, "a bandwidth", '"10MiB/s" or "1Gbit/s"', BANDWIDTH_UNITS)
    count, unit = match.groups()
    bandwidth = int(count) * (_BYTES[unit] if unit in _BYTES else _BITS[unit] / 8)
    if not 0 < bandwidth <= BANDWIDTH_MAX:
        raise ValueError(f'"{text}" is out of range: a bandwidth is 1bit/s to 100Tbit/s')
    return bandwidth


def parse_rate(text: str) -> float:
    """Read ``"500/s"``, ``"30/m"`` or ``"1000/h"`` as events per second.

    Raises:
        ValueError: it is no rate, zero, or more than ``RATE_MAX``.

    """
    match = _match(_RATE, text, "a rate", '"500/s", "30/m" or "1000/h"')
    count, unit = match.groups()
    rate = int(count) / _SECONDS[unit]
    if not 0 < rate <= RATE_MAX:
        raise ValueError(f'"{text}" is out of range: a rate is 1/h to {RATE_MAX}/s')
    return rate


def format_duration(seconds: float, *, parts: int = 2) -> str:
    """Write seconds as ``"1h30m"``: the greatest units only, the rest cut off.

    Args:
        seconds: what is below zero is written as zero.
        parts: how many units to write; five always write every millisecond.

    """
    rest = max(0, round(seconds * 1000))
    written: list[str] = []
    for unit, length in _MILLISECONDS.items():
        count, rest = divmod(rest, length)
        if count:
            written.append(f"{count}{unit}")
        if len(written) == parts:
            break
    return "".join(written) or "0s"


def format_span(seconds: float) -> str:
    """Write a time span for people, as ``"<1ms"``, ``"16ms"``, ``"31s"`` or ``"2h5m"``.

    What lies below the units that are shown is cut off: whole seconds from one second on.
    """
    milliseconds = int(
        seconds * 1000 + 0.01
    )  # differences of Unix times have dust behind the point
    if milliseconds < 1:
        return "<1ms"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    return format_duration(float(milliseconds // 1000))


def format_size(size: int) -> str:
    """Write bytes as ``"64KiB"``, and with one decimal where that is not exact: ``"1.4MiB"``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        count = size / _BYTES[unit]
        if count >= 1:
            return f"{count:.1f}".removesuffix(".0") + unit
    return f"{size}B"


def format_bandwidth(bandwidth: float) -> str:
    """Write bytes per second as ``"1MiB/s"`` where that is exact, else as ``"10Mbit/s"``."""
    bits = round(bandwidth * 8)
    binary = {f"{prefix}iB": 8 << 10 * power for power, prefix in enumerate("KMGT", 1)}
    for unit, size in (*reversed(binary.items()), *reversed(_BITS.items())):
        if bits % size == 0:
            return f"{bits // size}{unit}/s"
    raise AssertionError(bandwidth)  # every whole number is so many bits


def _match(
    pattern: re.Pattern[str], text: str, kind: str, examples: str, units: Sequence[str] = ()
) -> re.Match[str]:
    match = pattern.fullmatch(text) if len(text) <= TEXT_MAX else None
    if match is None:
        found = f'"{text}" is' if len(text) <= TEXT_MAX else f"{len(text)} characters are"
        known = f"; units: {', '.join(units)}" if units else ""
        raise ValueError(
            f"{found} not {kind}: expected whole numbers with a unit, as {examples}{known}"
        )
    return match
