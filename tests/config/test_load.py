"""Loading: every problem with its line, and nothing but ConfigError whatever the file is."""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import threading
from pathlib import Path

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.load import SIZE_MAX, ConfigError, Problem, load, parse
from proxy.config.model import Config
from proxy.config.problem import PROBLEMS_MAX

LEAST = '[listener.web]\nlisten = "tcp://0.0.0.0:80"\nupstream = "web"\n'
UPSTREAM = '[upstream.web]\nendpoints = ["10.0.0.1:80"]\n'
NOBODY = 65534

VALID = LEAST + UPSTREAM
REFERENCE = Path(__file__).parents[2] / "config" / "sockpair.toml"

# The reference without its comments, but with the keys that it comments out: every key there is.
# The files that it names lie here.
SOUND = re.sub(r"(?m)^# (?=(?:\w+|\"\S+\") = )|(^|  +)# .*$", "", REFERENCE.read_text()).replace(
    "/etc/sockpair/", f"{Path(__file__).parent}/"
)


def problems(text: str) -> list[str]:
    """What is said of a text, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    return [str(problem).removeprefix("f:") for problem in caught.value.problems]


def refusal(path: str | os.PathLike[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    [problem] = caught.value.problems
    return problem.message


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(VALID)
    assert load(file) == load(str(file)) == parse(VALID, "f")


def test_the_form_of_the_contract() -> None:
    assert problems(VALID.replace("[up", "limts = {}\n[up")) == [
        '4: listener.web.limts: unknown key; did you mean "limits"?'
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: listener: there is none; add a [listener.web] table"),
        ("[listener]", "1: listener: there is none; add a [listener.web] table"),
        ("listener = 5", "1: listener: expected a table, found 5"),
        (
            "[listener.web]\n",
            '1: listener.web.listen: missing; add it, for example listen = "tcp://0.0.0.0:8080"',
        ),
        (
            VALID + "[listenr]",
            '6: listenr: unknown key; did you mean "listener"?',
        ),
        (
            LEAST + 'idle = "5m"\n' + UPSTREAM,
            '4: listener.web.idle: unknown key; did you mean "limits.per_flow.idle"?',
        ),
        (
            VALID + "[log]\nzzz = 1",
            "7: log.zzz: unknown key; known here: flows, format, level",
        ),
        (VALID + "[log]\n'[key]' = 1", '7: log."[key]": unknown key'),
        (VALID + "[log.deeper.still]", "6: log.deeper: unknown key; known here: flows, "),
        (
            VALID + '[log]\nlevel = "warn"',
            '7: log.level: expected "debug", "info", "warning" or "error", found "warn"; '
            'did you mean "warning"?',
        ),
        (VALID + "[log]\nlevel = []", '"error", found an array'),
        (VALID + "engine.table_limit = 0", "6: upstream.web.engine: unknown key"),
        ("engine.table_limit = 0\n" + VALID, "1: engine.table_limit: expected at least 1, found 0"),
        ("engine.recent = 9_000_000\n" + VALID, "expected at most 1000000, found 9000000"),
        ("engine.recent = 1.0\n" + VALID, "1: engine.recent: expected a whole number, found 1.0"),
        ("engine.recent = true\n" + VALID, "expected a whole number, found true"),
        ("engine.recent = 0x" + "f" * 9999 + "\n" + VALID, "found a huge number"),
        ("engine = []\n" + VALID, "1: engine: expected a table, found an array"),
        ("admin.socket = 'a.sock'\n" + VALID, '"a.sock" is not an absolute path'),
        ("admin.socket = '/" + "a" * 107 + "'\n" + VALID, "is too long: a socket's path has 107"),
        ("admin.http = 9600\n" + VALID, "expected text such as"),
        ("admin.http = '9600'\n" + VALID, '"9600" is not host:port, such as "127.0.0.1:9600"'),
        ("admin.http = 'web:9600'\n" + VALID, '"web" in "web:9600" is a name: expected an IP'),
        (LEAST + "dual_stack = 1\n" + UPSTREAM, "4: listener.web.dual_stack: expected true or fal"),
        (LEAST + "upstream.x = 1\n" + UPSTREAM, "4: not valid TOML: Cannot"),
        (VALID.replace('"web"', "5"), "3: listener.web.upstream: expected text in quotes, found 5"),
        (VALID.replace("]\n", "\n"), "1: not valid TOML: "),
        (UPSTREAM.replace("10.0.0.1:80", "10.0.0.1"), 'endpoints[0]: "10.0.0.1" is not host:port'),
        (UPSTREAM.replace("10.0.0.1:80", "0.0.0.0:80"), '"0.0.0.0:80" is a wildcard'),
        (UPSTREAM.replace("10.0.0.1:80", "x" * 301 + ":80"), "found 304 characters"),
        ("[upstream.w]\nendpoints = []", "2: upstream.w.endpoints: is empty; fill it, for example"),
        ("[upstream.w]\nendpoints = 'a:1'", 'expected an array, found "a:1"; write ["a:1"]'),
        ("[upstream.w]\nendpoints = [1]", "2: upstream.w.endpoints[0]: expected text such as"),
        (
            '[upstream."a b"]\nendpoints = ["a:1"]',
            '1: upstream."a b": "a b" is not a name: expected 1 to 63 letters, digits',
        ),
        (LEAST + 'limits.per_flow.connect = "5"\n', '4: listener.web.limits.per_flow.connect: "5"'),
        (LEAST + 'limits.per_flow.connect = "0s"\n', '"0s" is out of range: expected 1ms to 3650d'),
        (LEAST + "limits.per_flow.connect = 2020-01-01\n", "found a date or time"),
        (
            LEAST.replace("tcp", "udp") + 'receive_buffer = "2GiB"\n',
            "expected 4KiB to less than 1G",
        ),
    ],
)
def test_messages_name_place_value_expectation_and_remedy(text: str, expected: str) -> None:
    assert any(expected in line for line in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[listner.web]", ['1: listner: unknown key; did you mean "listener"?']),
        (
            LEAST.replace("listen =", "lisen =") + UPSTREAM,
            ['2: listener.web.lisen: unknown key; did you mean "listen"?'],
        ),
    ],
)
def test_what_is_there_misspelt_is_not_missing_too(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_all_problems_are_told_at_once_in_the_order_of_lines() -> None:
    text = """\
[log]
format = "xml"
[listener.a]
listen = "tcp://0.0.0.0:80"
upstream = "wbe"
backlog = "many"
[listener.b]
listen = "tcp://127.0.0.1:80"
[upstream.web]
endpoints = ["10.0.0.1:80", "10.0.0.1:80", 5]
"""
    places = [line.split(": ")[:2] for line in problems(text)]
    assert places == [
        ["2", "log.format"],
        ["5", "listener.a.upstream"],
        ["6", "listener.a.backlog"],
        ["7", "listener.b.upstream"],
        ["8", "listener.b.listen"],
        ["10", "upstream.web.endpoints[1]"],
        ["10", "upstream.web.endpoints[2]"],
    ]


def test_an_unused_upstream_is_a_warning() -> None:
    warnings: list[Problem] = []
    parse(VALID + "[upstream.spare]\nendpoints = ['a:1']", "f", warnings.append)
    assert [str(warning) for warning in warnings] == [
        "f:6: upstream.spare: warning: no listener forwards to it"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = ", "2: not valid TOML: Invalid value (column 5)"),
        ("\x00", "1: not valid TOML: Invalid statement (column 1)"),
        ("a = 'x\ny'", "1: not valid TOML: "),
        ("a = " + "[" * 5000, " is nested too deep: a configuration needs 6 levels"),
        ("a" + ".a" * 5000 + " = 1", " is nested too deep: a configuration needs 6 levels"),
        ("a = " + "9" * 5000, " contains a number of thousands of digits"),
    ],
)
def test_what_is_no_toml_is_one_problem(text: str, message: str) -> None:
    [line] = problems(text)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "there is none; add a [listener.web] table"),
        (b"\xef\xbb\xbf" + VALID.encode(), "starts with a byte order mark"),
        (VALID.encode("utf-16"), "byte 0xff is not UTF-8; save the file as UTF-8"),
        ("# größe\n".encode("latin-1"), "byte 0xf6 is not UTF-8"),
        (b"\x7fELF\x02\x01\x01" + bytes(100), "not valid TOML"),
        (b"#" * (SIZE_MAX + 1), "is larger than 4MiB: is it the right file?"),
    ],
)
def test_bytes_that_are_no_configuration(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(data)
    assert message in refusal(file)


def test_a_file_of_the_greatest_size_is_read(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(VALID + "#" * (SIZE_MAX - len(VALID)))
    assert load(file) == parse(VALID, "f")


def test_the_line_of_a_byte_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b"# 1\n# 2\n\xff")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.problems[0].line == 3


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def write_slowly() -> None:
        with fifo.open("w") as pipe:
            for line in VALID.splitlines(keepends=True):
                pipe.write(line)
                pipe.flush()

    writer = threading.Thread(target=write_slowly)
    writer.start()
    assert [*load(fifo).listener] == ["web"]
    writer.join()


def test_a_pipe_whose_writer_says_nothing_is_an_empty_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.open("wb").close())
    writer.start()
    assert "there is none" in refusal(fifo)
    writer.join()


@pytest.mark.parametrize("writers", [0, 1])
def test_a_pipe_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: int
) -> None:
    monkeypatch.setattr("proxy.config.files.PIPE_WAIT", 0.01)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    ends = [os.open(fifo, os.O_RDWR) for _ in range(writers)]
    assert refusal(fifo) == "is a pipe that did not end within 0.01 s"
    for end in ends:
        os.close(end)


def test_what_is_not_an_ordinary_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing") == "cannot be read: no such file or directory"
    assert "is not an ordinary file" in refusal(tmp_path)
    assert "is not an ordinary file" in refusal("/dev/zero")
    assert "cannot be read" in refusal("x" * 5000)
    assert "cannot be read" in refusal("")
    assert "is not the name of a file" in refusal("a\x00b")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(tmp_path / "s"))
        assert "cannot be read" in refusal(tmp_path / "s")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.touch(mode=0)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    if user == 0:  # root may read everything, so be nobody for a moment
        tmp_path.chmod(0o755)
        os.seteuid(NOBODY)
    try:
        assert refusal("c.toml") == "cannot be read: permission denied"
    finally:
        os.seteuid(user)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(VALID.encode())))
    assert load("-") == parse(VALID, "f")
    monkeypatch.setattr(sys, "stdin", None)
    assert refusal("-") == "cannot be read: it is closed"


def test_a_file_gone_wrong_has_a_bounded_answer() -> None:
    text = "".join(f"[listener.l{number}]\nupstream = 'x{number}'\n" for number in range(1500))
    lines = problems(text)
    assert len(lines) == PROBLEMS_MAX + 1
    assert lines[0] == f" has more problems than the {PROBLEMS_MAX} that follow"


# Whatever is in a file: a configuration or a ConfigError, and messages that print.


def test_the_text_that_is_to_be_damaged_is_sound() -> None:
    assert parse(SOUND, "f").listener["web"].limits.per_flow.duration == 28800.0


def config_or_error(text: str) -> None:
    try:
        found: Config | ConfigError = parse(text, "f")
    except ConfigError as error:
        found = error
    if isinstance(found, ConfigError):
        assert found.problems
        for problem in found.problems:
            assert 0 <= problem.line <= text.count("\n") + 1
            assert str(problem).isprintable()
            assert "pydantic" not in str(problem)
            assert "cannot be used" not in str(problem), "an error type without a message"


@given(st.binary())
def test_any_bytes_are_a_configuration_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).replace("\n", "").isprintable()


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_configuration_is_a_configuration_or_an_error(data: st.DataObject) -> None:
    text = SOUND
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 12))
        patch = st.text(max_size=4) | st.sampled_from(['"', "[", "]", "=", "\n", "{}", "[[", "0"])
        text = text[:start] + data.draw(patch) + text[end:]
    config_or_error(text)


TEXTS = ['""', '"5s"', '"\\u001b"', '"tcp://[::]:1"', '"a:1"', '"x"']
SCALARS = ["0", "-1", "99999999999999999999", "1.5", "nan", "true", "2020-01-01"]
CONTAINERS = ["[]", "{}", "[[]]", '["a:1", "a:1"]', '{ "" = 1 }']
VALUES = st.sampled_from([*TEXTS, *SCALARS, *CONTAINERS])


@given(st.data())
@settings(max_examples=150)
def test_any_value_in_any_place_is_a_configuration_or_an_error(data: st.DataObject) -> None:
    lines = SOUND.split("\n")
    places = [number for number, line in enumerate(lines) if " = " in line]
    for number in data.draw(st.lists(st.sampled_from(places), max_size=6, unique=True)):
        lines[number] = lines[number].split(" = ")[0] + " = " + data.draw(VALUES)
    text = "\n".join(lines)
    tomli.loads(text)  # so what is tried is the meaning, not the syntax
    config_or_error(text)
