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


HEADINGS = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that a page of Markdown gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_contents_are_the_headings_in_their_order() -> None:
    contents = TEXT[: TEXT.index("\n## ")]
    assert re.findall(r"\[([^]]+)\]\(#[\w-]+\)", contents) == HEADINGS


def test_links_within_the_readme_lead_to_headings_where_they_say() -> None:
    places = {anchor(heading): TEXT.index(f"\n## {heading}\n") for heading in HEADINGS}
    wrong = [
        link[0]
        for link in re.finditer(r"\[([^]]+)\]\(#([\w-]+)\)", TEXT)
        if link[2] not in places
        or (link[1] == "below" and places[link[2]] < link.start())
        or (link[1] == "above" and places[link[2]] > link.start())
    ]
    assert wrong == []


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md", "deploy/OPERATIONS.md"])
def test_no_text_keeps_the_marks_of_a_merge(file: str) -> None:
    text = (README.parent / file).read_text()
    assert not re.findall(r"^(?:<{7}|={7}|>{7}).*$", text, re.MULTILINE)
