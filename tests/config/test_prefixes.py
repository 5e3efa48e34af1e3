"""Access lists in the configuration, and in files of their own."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.load import ConfigError, parse
from proxy.config.model import Config, Listener
from proxy.config.prefixes import (
    TOLD_MAX,
    WRONG_MAX,
    _usual,
    parse_prefix,
    parse_prefix_file,
)
from proxy.core.prefix_set import PrefixSet, prefix_of

HEAD = '[listener.web]\nlisten = "{}"\nupstream = "web"\n'
TAIL = '[upstream.web]\nendpoints = ["10.0.0.1:80"]\n'
UNIX_TAIL = '[upstream.web]\nendpoints = ["unix:///run/y.sock"]\n'


def listener(keys: str) -> Listener:
    config: Config = parse(f"{HEAD.format('tcp://0.0.0.0:80')}{keys}\n{TAIL}", "f")
    return config.listener["web"]


def problems(keys: str, listen: str = "tcp://0.0.0.0:80", tail: str = TAIL) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(f"{HEAD.format(listen)}{keys}\n{tail}", "f")
    return [str(problem).removeprefix("f:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.7", "10.0.0.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:DB8::1", "2001:db8::1/128"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
    ],
)
def test_a_prefix_is_read(text: str, expected: str) -> None:
    assert str(parse_prefix(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", 'has bits beyond its length: write "10.0.0.0/8"'),
        ("2001:db8::1/32", 'has bits beyond its length: write "2001:db8::/32"'),
        ("::ffff:10.0.0.0/104", "is IPv4 in IPv6: write 10.0.0.0/8"),
        ("10.0.0.0/33", "is no prefix"),
        ("web.example", "is no prefix"),
        ("", "is no prefix"),
    ],
)
def test_what_is_no_prefix_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_prefix(text)


def test_every_wrong_prefix_is_told() -> None:
    assert problems('allow = ["10.0.0.1/8", "10.0.0.0/8", "x", 5]') == [
        '4: listener.web.allow[0]: "10.0.0.1/8" has bits beyond its length: write "10.0.0.0/8"',
        '4: listener.web.allow[2]: "x" is no prefix: expected "10.0.0.0/8" or "2001:db8::/32"',
        '4: listener.web.allow[3]: expected text such as "10.0.0.0/8" or "2001:db8::/32", found 5',
    ]


def test_what_is_allowed_and_denied_is_told() -> None:
    keys = 'allow = ["10.0.0.0/8"]\ndeny = ["10.1.0.0/16", "10.0.0.0/8"]'
    assert problems(keys) == [
        '5: listener.web.deny[1]: "10.0.0.0/8" is in allow, too; remove one of them'
    ]


def test_a_unix_listener_has_no_access_lists() -> None:
    message = "has no effect on a unix listener, only on tcp and udp; remove it"
    found = problems('deny = ["10.0.0.0/8"]', "unix:///run/x.sock", UNIX_TAIL)
    assert found == [f"4: listener.web.deny: {message}"]


def test_a_file_of_prefixes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "allow.txt"
    file.write_text("# ours\n10.0.0.0/8\n\n2001:db8::/32  # and theirs\n192.0.2.7\n")
    read = listener(f'allow_file = "{file}"').allow_file
    assert read is not None
    assert read.prefixes == PrefixSet(
        prefix_of(ipaddress.ip_network(text))
        for text in ("192.0.2.7/32", "10.0.0.0/8", "2001:db8::/32")
    )
    assert str(read) == f"{file} (3 prefixes)"


def test_the_lines_of_a_file_that_are_wrong_are_named(tmp_path: Path) -> None:
    file = tmp_path / "deny.txt"
    file.write_text("10.0.0.0/8\n" + "x\n" * (TOLD_MAX + 2))
    [problem] = problems(f'deny_file = "{file}"')
    expected = '"x" is no prefix: expected "10.0.0.0/8" or "2001:db8::/32"'
    assert problem.startswith(f"4: listener.web.deny_file: {file}:2: {expected}; {file}:3: ")
    assert problem.endswith("; and 2 more")


def test_no_more_lines_are_read_of_another_file(tmp_path: Path) -> None:
    file = tmp_path / "deny.txt"
    file.write_text(f"{'y' * 1000}\n" * (WRONG_MAX + 1))
    [problem] = problems(f'deny_file = "{file}"')
    more = WRONG_MAX - TOLD_MAX
    assert problem.endswith(
        f"; and {more} more, after which no line was read: is it the right file?"
    )
    assert len(problem) < 2000


def test_a_file_is_kept_once_and_read_anew_when_it_has_changed(tmp_path: Path) -> None:
    files = tmp_path / "one.txt", tmp_path / "other.txt"
    for file in files:
        file.write_text("10.0.0.0/8\r\n")
    one, other = (parse_prefix_file(str(file)) for file in files)
    assert one.prefixes is other.prefixes
    assert one != other
    files[0].write_text("10.0.0.0/9\n")
    changed = parse_prefix_file(str(files[0]))
    assert str(changed) == str(one)
    assert changed != one


texts = st.one_of(
    st.ip_addresses().map(str),
    st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 130)),
    st.builds(
        lambda address, length: str(ipaddress.ip_network(f"{address}/{length}", strict=False)),
        st.ip_addresses(),
        st.integers(0, 32),
    ),
    st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{0,3})?\Z"),
    st.from_regex(r"\A[0-9a-fA-F:.]{2,20}(/[0-9]{0,3})?\Z"),
    st.sampled_from(
        (
            *("::ffff:10.0.0.0/104", "::ffff:0:0/96", "::ffff:0:0/95", "::1.2.3.4", "010.0.0.0/8"),
            *("10.0.0.0/", "10.0.0.0/08", "10.0.0.0/255.0.0.0", "2001:DB8::/32", "fe80::1%eth0"),
            *("\u0661.0.0.0/8", "10.0.0.0/\u0668", "::/0", "0.0.0.0/0", "10.0.0.0 /8", "/8", ""),
        )
    ),
)


@given(texts)
@settings(max_examples=500)
def test_what_is_read_quickly_is_what_the_standard_library_reads(text: str) -> None:
    quick = _usual(text)
    if quick is not None:
        assert quick == prefix_of(parse_prefix(text))


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "2001:db8::7", "::/0"]
)
def test_the_usual_forms_are_read_quickly(text: str) -> None:
    assert _usual(text) == prefix_of(parse_prefix(text))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/allow.txt", "/nowhere/allow.txt cannot be read: no such file or directory"),
        ("allow.txt", 'expected an absolute path, found "allow.txt"'),
        ("/tmp", "/tmp is not an ordinary file, nor a pipe"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(path: str, message: str) -> None:
    [problem] = problems(f'allow_file = "{path}"')
    assert problem == f"4: listener.web.allow_file: {message}"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("burst = 5", "limits.burst: has no effect without flow_rate; add that, or remove this"),
        (
            "per_source.burst = 5",
            "limits.per_source.burst: has no effect without flow_rate; add that, or remove this",
        ),
        (
            "flows = 200000",
            "limits.flows: 200000 are never reached: engine.table_limit is 100000; raise that",
        ),
        (
            "flows = 10\nper_source.flows = 11",
            "limits.per_source.flows: 11 are never reached: limits.flows is 10; lower this",
        ),
        ("flows = 0", "limits.flows: expected at least 1, found 0"),
        ("per_source.prefix_v4 = 33", "limits.per_source.prefix_v4: expected at most 32, found 33"),
    ],
)
def test_a_ceiling_that_means_nothing_is_told(keys: str, message: str) -> None:
    [problem] = problems(f"[listener.web.limits]\n{keys}")
    assert problem.partition(": ")[2] == f"listener.web.{message}"


def test_weights_are_read_by_prefix() -> None:
    limits = listener(
        'limits.bandwidth = "1MB/s"\nlimits.weights = { "10.0.0.0/8" = 4, "2001:db8::/32" = 1000 }'
    ).limits
    assert {str(network): weight for network, weight in limits.weights.items()} == {
        "10.0.0.0/8": 4,
        "2001:db8::/32": 1000,
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ('"10.0.0.0/8" = 0', '6: {}."10.0.0.0/8": expected at least 1, found 0'),
        ('"10.0.0.0/8" = 1001', '6: {}."10.0.0.0/8": expected at most 1000, found 1001'),
        ('"10.0.0.0/8" = 1.5', '6: {}."10.0.0.0/8": expected a whole number, found 1.5'),
        (
            '"10.0.0.1/8" = 2',
            '6: {}."10.0.0.1/8": "10.0.0.1/8" has bits beyond its length: write "10.0.0.0/8"',
        ),
        (
            "office = 2",
            '6: {}.office: "office" is no prefix: expected "10.0.0.0/8" or "2001:db8::/32"',
        ),
        (
            '"10.0.0.0/8" = 2\n"10.0.0.0/255.0.0.0" = 3',
            '7: {}."10.0.0.0/255.0.0.0": is the same as "10.0.0.0/8"; remove one of them',
        ),
        (
            '"2001:db8::7" = 2',
            '6: {}."2001:db8::7": is a part of a source: limits.per_source.prefix_v6 is 64; '
            "shorten this",
        ),
    ],
)
def test_a_wrong_weight_is_told_with_its_line(weights: str, message: str) -> None:
    keys = f'limits.bandwidth = "1MB/s"\n[listener.web.limits.weights]\n{weights}'
    assert problems(keys) == [message.format("listener.web.limits.weights")]


def test_weights_that_divide_nothing_are_told() -> None:
    [problem] = problems('limits.weights = { "10.0.0.0/8" = 4 }')
    assert problem.partition(": ")[2] == (
        "listener.web.limits.weights: has no effect without bandwidth; add that, or remove this"
    )


def test_a_weight_may_be_of_a_single_source_of_any_length() -> None:
    keys = 'limits.bandwidth = "1MB/s"\nlimits.per_source.prefix_v4 = 24\n'
    assert listener(keys + 'limits.weights = { "10.0.1.0/24" = 4 }').limits.weights
    [problem] = problems(keys + 'limits.weights = { "10.0.1.0/25" = 4 }')
    assert "is a part of a source: limits.per_source.prefix_v4 is 24" in problem
