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


def test_configuration_is_valid() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert parse(block, "README.md").listener.keys() == {"web"}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", TEXT))
def test_links_lead_to_files(link: str) -> None:
    assert (Path(README).parent / link).exists()


@pytest.mark.parametrize("word", [*CloseReason, *State, *Drop, *FlowRow.__annotations__])
def test_every_word_of_a_flow_is_explained(word: str) -> None:
    assert f"`{word}`" in TEXT


@pytest.mark.parametrize("word", ["table_full", "file_descriptors", "draining", "loop"])
def test_every_refusal_that_occurs_is_explained(word: str) -> None:
    assert word in {refusal.value for refusal in Refusal}
    assert f"`{word}`" in TEXT


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_named(command: str) -> None:
    assert f"sockpair {command}" in TEXT
