"""The README is true: metrics, words, configuration, commands and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.cli import COMMANDS
from proxy.config.load import parse
from proxy.core.flow import CloseReason, Drop, Refusal, State
from proxy.core.query import FlowRow
from tests.artefacts.readme import README, with_metrics

TEXT = README.read_text()


def test_metrics_are_the_catalogue() -> None:
    assert with_metrics(TEXT) == TEXT, "run: python -m tests.artefacts.readme"


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL))
def test_configuration_is_valid(block: str, tmp_path: Path) -> None:
    for name in re.findall(r'"/etc/sockpair/(\w+\.txt)"', block):
        (tmp_path / name).write_text("192.0.2.0/24\n")
    whole = block.replace("/etc/sockpair", str(tmp_path))
    if "[upstream.web]" not in whole:
        whole += '[upstream.web]\nendpoints = ["10.0.0.1:80"]\n'
    assert parse(whole, "README.md").listener.keys() == {"web"}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", TEXT))
def test_links_lead_to_files(link: str) -> None:
    assert (Path(README).parent / link).exists()


@pytest.mark.parametrize("word", [*CloseReason, *State, *Drop, *FlowRow.__annotations__])
def test_every_word_of_a_flow_is_explained(word: str) -> None:
    assert f"`{word}`" in TEXT


@pytest.mark.parametrize("word", Refusal)
def test_every_refusal_is_explained(word: str) -> None:
    assert f"`{word}`" in TEXT


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_named(command: str) -> None:
    assert f"sockpair {command}" in TEXT
