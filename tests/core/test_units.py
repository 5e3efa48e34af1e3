"""Units: exact where a person wrote them, and one kind of error for everything else."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.units import (
    BANDWIDTH_MAX,
    DURATION_MAX,
    RATE_MAX,
    SIZE_MAX,
    format_bandwidth,
    format_duration,
    format_size,
    format_span,
    parse_bandwidth,
    parse_duration,
    parse_rate,
    parse_size,
)

CEILINGS = {
    parse_duration: DURATION_MAX,
    parse_size: SIZE_MAX,
    parse_bandwidth: BANDWIDTH_MAX,
    parse_rate: RATE_MAX,
}
PARSERS = list(CEILINGS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("1ms", 0.001),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("90m", 5400.0),
        ("8h", 28800.0),
        ("2d", 172800.0),
        ("1h30m", 5400.0),
        ("1d2h3m4s5ms", 93784.005),
        ("36500d", DURATION_MAX),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("0B", 0),
        ("123B", 123),
        ("1kB", 1000),
        ("5MB", 5_000_000),
        ("64KiB", 65536),
        ("10GiB", 10 * 2**30),
        ("8192TiB", SIZE_MAX),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert isinstance(parse_size(text), int)


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("1bit/s", 0.125),
        ("64kbit/s", 8000.0),
        ("1Gbit/s", 125_000_000.0),
        ("100Tbit/s", BANDWIDTH_MAX),
        ("1B/s", 1.0),
        ("10MB/s", 10_000_000.0),
        ("10MiB/s", 10 * 2**20),
    ],
)
def test_bandwidths(text: str, bytes_per_second: float) -> None:
    assert parse_bandwidth(text) == bytes_per_second


@pytest.mark.parametrize(
    ("text", "per_second"),
    [("500/s", 500.0), ("30/m", 0.5), ("1000/h", 1000 / 3600), ("1000000000/s", RATE_MAX)],
)
def test_rates(text: str, per_second: float) -> None:
    assert parse_rate(text) == per_second


NO_NUMBER = ["", " ", "5", "s", "-5s", "+5s", "-1B", "nan", "inf", "NaN/s", "1e3s", "1.5s"]
NO_UNIT = ["30 s", "30s ", "1s\n", "30S", "64K", "64KB", "5MB/m", "1m1h", "1s1s", "1gbit/s", "5/d"]
NO_ASCII = ["٣s", "٣B", "²B", "\x00"]
NO_END = ["9" * 63 + "d", "9" * 5000 + "s"]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", [*NO_NUMBER, *NO_UNIT, *NO_ASCII, *NO_END])
def test_what_is_no_such_value_is_refused(parse: object, text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a|are not a|too l|out of range"):
        parse(text)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_duration, "36501d"),
        (parse_size, "8193TiB"),
        (parse_bandwidth, "101Tbit/s"),
        (parse_bandwidth, "0MiB/s"),
        (parse_rate, "1000000001/s"),
        (parse_rate, "0/s"),
    ],
)
def test_out_of_range_names_the_value_and_the_bound(parse: object, text: str) -> None:
    with pytest.raises(ValueError, match=rf'"{re.escape(text)}" is .*: a .*[0-9]'):
        parse(text)


def test_the_units_that_there_are_are_named() -> None:
    with pytest.raises(ValueError, match=r'"300KB/s" is not .*units: B/s, kB/s, .*, Tbit/s$'):
        parse_bandwidth("300KB/s")
    with pytest.raises(ValueError, match=r'"1KB" is not .*units: B, kB, .*, TiB$'):
        parse_size("1KB")


def test_a_message_stays_short() -> None:
    with pytest.raises(ValueError, match="100000 characters are not a size"):
        parse_size("9" * 100_000)


NEARLY = st.from_regex(r"[0-9]{0,20}(ms|[smhdBKMGkit/]){0,6}", fullmatch=True)


@given(st.text() | NEARLY)
def test_any_text_gives_a_bounded_value_or_a_value_error(text: str) -> None:
    for parse, ceiling in CEILINGS.items():
        with suppress(ValueError):
            assert 0 <= parse(text) <= ceiling


@given(st.integers(0, DURATION_MAX * 1000))
def test_a_duration_survives_being_written(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds, parts=5)) == seconds


@given(st.floats(0, DURATION_MAX))
def test_a_short_duration_is_cut_off_never_rounded_up(seconds: float) -> None:
    shown = parse_duration(format_duration(seconds))
    assert shown <= seconds + 0.0005
    assert seconds - shown < max(shown / 24, 0.001)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0004, "0s"), (0.25, "250ms"), (7440, "2h4m"), (93784, "1d2h"), (60, "1m")],
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "<1ms"),
        (0, "<1ms"),
        (0.0009, "<1ms"),
        (0.0169, "16ms"),
        (0.9999, "999ms"),
        (1.999, "1s"),
        (1_700_000_005.3 - 1_700_000_000.3, "5s"),
        (31.413, "31s"),
        (7507.9, "2h5m"),
    ],
)
def test_spans_for_people_are_cut_off_once(seconds: float, text: str) -> None:
    assert format_span(seconds) == text


@given(st.integers(0, 1023), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_a_whole_size_survives_being_written(count: int, unit: str) -> None:
    size = parse_size(f"{count}{unit}")
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (1_468_006, "1.4MiB"), (2**43, "8TiB")],
)
def test_sizes_are_written_short(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("bandwidth", "text"),
    [
        (1 << 20, "1MiB/s"),
        (1536 * 1024, "1536KiB/s"),
        (1_250_000, "10Mbit/s"),
        (125_000_000, "1Gbit/s"),
        (0.125, "1bit/s"),
        (1001, "8008bit/s"),
    ],
)
def test_a_bandwidth_is_written_as_it_may_have_been_read(bandwidth: float, text: str) -> None:
    assert format_bandwidth(bandwidth) == text
    assert parse_bandwidth(text) == bandwidth


@given(st.integers(1, 8 * 10**12).map(lambda bits: bits / 8))
def test_a_bandwidth_that_was_written_is_read_as_the_same(bandwidth: float) -> None:
    assert parse_bandwidth(format_bandwidth(bandwidth)) == bandwidth
