"""The manual pages: they say what the code says, and formatters have nothing against them."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import click
import pytest

from proxy.cli import COMMANDS, main
from proxy.config import model
from tests.systemd.lab import ROOT


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    runpy.run_path(str(ROOT / "deploy" / "manual.py"))["write"](folder)
    return folder


def formatted(page: Path) -> str:
    """The page as people see it; a warning of the formatter is a failure."""
    done = subprocess.run(
        ["man", "--local-file", "--warnings=all", page],
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "2000", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


@pytest.mark.peers("man", "groff")
@pytest.mark.parametrize("name", ["sockpair.1", "sockpair.toml.5"])
def test_formatters_have_nothing_against_it(pages: Path, name: str) -> None:
    assert formatted(pages / name).splitlines()


@pytest.mark.peers("man", "groff")
def test_every_command_and_every_option_is_there(pages: Path) -> None:
    text = formatted(pages / "sockpair.1")
    context = click.Context(main)
    for name in COMMANDS:
        assert f"sockpair {name}" in text
        command = main.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in text, (name, parameter.opts)


@pytest.mark.peers("man", "groff")
def test_every_table_and_every_key_is_there(pages: Path) -> None:
    text = formatted(pages / "sockpair.toml.5")
    for table in model.Table.__subclasses__():
        for key in table.model_fields:
            if key not in {"limits", "per_flow", "tcp", "admin", "engine", "log"}:
                assert re.search(rf"\b{key}\b", text), (table, key)
    for name in ("admin", "engine", "log", "listener.NAME", "listener.NAME.limits.per_flow"):
        assert f"[{name}]" in text
    assert 'Example: { "10.0.0.0/8" = 4 }.' in text
