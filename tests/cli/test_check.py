"""The commands check and schema, as a person or a CI job meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.config.load import DEFAULT_FILE
from proxy.config.upstream import Upstream

VALID = """\
[listener.web]
listen = "tcp://0.0.0.0:80"
upstream = "origin"
[listener.names]
listen = "udp://[::]:53"
upstream = "dns"
[upstream.origin]
endpoints = ["10.0.0.1:80", "web:80"]
[upstream.dns]
endpoints = ["[2001:db8::1]:53"]
"""


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def test_a_valid_file_is_summed_up(file: Path) -> None:
    file.write_text(VALID)
    result = run("check", "-c", str(file))
    assert result.stdout.splitlines() == [
        f"{file}: valid",
        "  web    tcp://0.0.0.0:80  ->  origin  10.0.0.1:80, web:80",
        "  names  udp://[::]:53     ->  dns     [2001:db8::1]:53",
        "  admin: /run/sockpair/admin.sock, http: 127.0.0.1:9600",
    ]
    assert (result.stderr, result.exit_code) == ("", 0)


def test_every_problem_is_a_line_on_stderr(file: Path) -> None:
    file.write_text(VALID.replace("origin]", "orgin]") + "x = 1\ny = 2\n")
    result = run("check", "--config", str(file))
    known = "known here: " + ", ".join(sorted(Upstream.model_fields))
    assert result.stderr.splitlines() == [
        f'{file}:3: listener.web.upstream: there is no upstream "origin"; did you mean "orgin"?',
        f"{file}:11: upstream.dns.x: unknown key; {known}",
        f"{file}:12: upstream.dns.y: unknown key; {known}",
    ]
    assert (result.stdout, result.exit_code) == ("", 1)


def test_a_warning_is_no_failure(file: Path) -> None:
    file.write_text(VALID + '[upstream.spare]\nendpoints = ["a:1"]')
    result = run("check", "-c", str(file))
    assert result.stderr == f"{file}:11: upstream.spare: warning: no listener forwards to it\n"
    assert (result.stdout.count("\n"), result.exit_code) == (4, 0)


def test_standard_input_is_a_file_too() -> None:
    assert run("check", "-c", "-", stdin=VALID).stdout.startswith("-: valid\n")
    result = run("check", "-c", "-", stdin="x")
    assert (result.exit_code, result.stderr[:5]) == (1, "-:1: ")


def test_escape_sequences_do_not_reach_the_terminal(file: Path) -> None:
    file.write_text('"\\u001b[2J" = 1\nlog.level = "\\u001b]0;x\\u0007\\u202e"\n')
    result = run("check", "-c", str(file))
    assert result.exit_code == 1
    assert result.stderr.replace("\n", "").isprintable()


def test_without_a_name_the_usual_file_is_checked() -> None:
    if Path(DEFAULT_FILE).exists():
        pytest.skip("this host has one")
    result = run("check")
    assert result.stderr == f"{DEFAULT_FILE}: cannot be read: no such file or directory\n"
    assert result.exit_code == 1


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_file_without_its_option_is_a_usage_error(command: str) -> None:
    result = run(command, "file.toml")
    assert result.exit_code == 2
    assert 'unexpected argument "file.toml"; did you mean -c file.toml?' in result.stderr


def test_a_command_can_make_the_file() -> None:
    reading, writing = os.pipe()
    os.write(writing, VALID.encode())
    os.close(writing)
    try:
        result = run("check", "-c", f"/dev/fd/{reading}")
    finally:
        os.close(reading)
    assert result.stdout.startswith(f"/dev/fd/{reading}: valid\n")


def test_schema_is_printed_for_editors() -> None:
    result = run("schema")
    assert json.loads(result.stdout)["title"] == "sockpair.toml"
    assert result.exit_code == 0


def test_as_a_program(file: Path) -> None:
    file.write_bytes(b"\xff\x1b")
    program = [sys.executable, "-c", "from proxy.cli import main; main()", "check", "-c", str(file)]
    done = subprocess.run(program, capture_output=True, check=False, timeout=60, text=True)
    expected = f"{file}:1: byte 0xff is not UTF-8; save the file as UTF-8\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
