"""What the file says of health checks: what it becomes, and what is said of mistakes."""

from __future__ import annotations

import pytest

from proxy.config.health import Health
from proxy.config.load import ConfigError, parse
from proxy.config.plan import plan

LISTENER = '[listener.web]\nlisten = "tcp://0.0.0.0:8080"\nupstream = "web"\n[upstream.web]\n'
ADDRESS = 'endpoints = ["10.0.0.1:80"]\n'


def text(keys: str, endpoints: str = ADDRESS) -> str:
    return f"{LISTENER}{endpoints}[upstream.web.health]\n{keys}\n"


def health(keys: str) -> Health:
    return parse(text(keys), "f").upstream["web"].health


def problems(keys: str, endpoints: str = ADDRESS) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text(keys, endpoints), "f")
    return [str(each) for each in caught.value.problems]


def test_nothing_is_checked_unless_it_is_said() -> None:
    found = parse(LISTENER + ADDRESS, "f").upstream["web"].health
    assert found.check == "off"
    assert (found.interval, found.timeout, found.rise, found.fall) == (5.0, 2.0, 2, 3)


def test_what_is_sent_and_expected_becomes_bytes() -> None:
    assert health('check = "tcp"\nsend = "PING\\r\\n"').send == b"PING\r\n"
    assert health('check = "tcp"\nsend = "\\u00e4"').send == "\u00e4".encode()
    assert health('check = "udp"\nsend_hex = "00 01fF"').send_hex == b"\x00\x01\xff"
    assert health('check = "udp"\nexpect = ""').expect == b""
    pattern = health('check = "tcp"\nexpect_regex = "^\\\\+P.NG"').expect_regex
    assert pattern is not None
    assert pattern.search(b"+P\nNG")


def test_statuses_are_ranges() -> None:
    found = health('check = "http"\nstatus = ["200", "204-206"]').status
    assert found == (range(200, 201), range(204, 207))
    assert health('check = "http"').status == (range(200, 400),)


def test_what_is_off_may_keep_its_keys() -> None:
    health('check = "off"\nsend = "x"\npath = "/x"\ncommand = ["x"]')


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('check = "ping"', "health.check: "),
        (
            'check = "tpc"\nsend = "x"',
            'health.check: expected "off", "tcp", "http", "udp" or "command", found "tpc"; did you '
            'mean "tcp"?',
        ),
        ('check = "HTTP"\npath = "/"', 'found "HTTP"; did you mean "http"?'),
        ('check = ""\ncommand = ["x"]', 'found ""'),
        ('check = ["tcp"]\npath = "/"', "found an array"),
        ("check = []", "health.check: "),
        ('check = "tcp"\ninterval = "0s"', "health.interval: "),
        ('check = "tcp"\nrise = 0', "health.rise: "),
        ('check = "tcp"\nfall = 1.5', "health.fall: "),
        ('check = "tcp"\nport = 0', "health.port: "),
        ('check = "tcp"\nsend = 5', "health.send: expected text"),
        (f'check = "tcp"\nsend = "{"x" * 5000}"', "health.send: expected at most 4096"),
        ('check = "udp"\nsend_hex = "0"', 'health.send_hex: "0" is not bytes in hexadecimal'),
        ('check = "tcp"\nexpect_regex = "("', 'health.expect_regex: "(" is not a regular expr'),
        ('check = "http"\npath = "x"', 'health.path: "x" is not a path'),
        ('check = "http"\npath = "/a b"', 'health.path: "/a b" is not a path'),
        ('check = "http"\npath = "/a\\r\\nX: y"', "is not a path"),
        ('check = "http"\nhost = "a\\r\\nb"', "is not a host"),
        ('check = "http"\nstatus = ["20"]', 'health.status[0]: "20" is not the status'),
        ('check = "http"\nstatus = ["300-200"]', "ends before it begins"),
        ('check = "http"\nstatus = []', "health.status: "),
        ('check = "http"\nstatus = [200]', "health.status[0]: "),
        ('check = "command"\ncommand = []', "health.command: "),
        ('check = "command"\ncommand = [""]', "health.command[0]: "),
        ('check = "command"\ncommand = "x"', "health.command: expected an array"),
        ('check = "command"', 'health.check: needs a command, such as command = ["/usr'),
        ('check = "http"\nsend = "x"', 'health.send: has no effect where check is "http", only'),
        ('check = "tcp"\npath = "/"', 'health.path: has no effect where check is "tcp", only on'),
        ('check = "tcp"\ncommand = ["x"]', "health.command: has no effect"),
        ('check = "tcp"\nsend = "x"\nsend_hex = "00"', "health.send_hex: says the same as send"),
        ('check = "tcp"\nexpect = "x"\nexpect_regex = "x"', "expect_regex: says the same as exp"),
        ('chekc = "tcp"', 'health.chekc: unknown key; did you mean "check"?'),
    ],
)
def test_mistakes(keys: str, expected: str) -> None:
    (problem,) = problems(keys)
    assert "upstream.web." in problem
    assert expected in problem


@pytest.mark.parametrize(
    ("kind", "endpoint", "expected"),
    [
        ("tcp", "original", "cannot check original destinations"),
        ("udp", "unix:///run/x.sock", 'cannot check "unix:///run/x.sock"; use a command'),
    ],
)
def test_endpoints_that_cannot_be_checked(kind: str, endpoint: str, expected: str) -> None:
    (problem,) = problems(f'check = "{kind}"', f'endpoints = ["{endpoint}"]\n')
    assert f"upstream.web.health.check: {expected}" in problem


def test_a_plan_tells_what_changes() -> None:
    old = parse(text('check = "tcp"\nsend = "PING\\r\\n"\nexpect_regex = "a"'), "f")
    new = parse(text('check = "http"\nstatus = ["200", "204-206"]\nrise = 1'), "f")
    assert plan(old, new).lines() == [
        "~ upstream.web.health.check: tcp -> http",
        "~ upstream.web.health.rise: 2 -> 1",
        r'~ upstream.web.health.send: "PING\r\n" -> not set',
        '~ upstream.web.health.expect_regex: "a" -> not set',
        "~ upstream.web.health.status: 200-399 -> 200-200, 204-206",
    ]
