"""The guide for operators is complete and true: every word, event, alert and rule in it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.core.flow import CloseReason, Drop, Refusal
from proxy.observe.catalogue import CATALOGUE
from tests.e2e.program import peer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "OPERATIONS.md").read_text()
ALERTS = ROOT / "deploy" / "alerts.yml"

CALLS = {"debug", "info", "warning", "error", "exception", "critical"}


def section(title: str) -> str:
    return TEXT.split(f"{title}\n", 1)[1].split("\n## ", 1)[0]


def first_cells(text: str) -> set[str]:
    """The words in the first column of the tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`([a-z_]+)`", row)}


def table_after(words: str) -> str:
    """The first table after these words."""
    lines = TEXT.split(words, 1)[1].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    end = next(index for index in range(start, len(lines)) if not lines[index].startswith("|"))
    return "\n".join(lines[start:end])


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("`sockpair_flows_closed_total`:", CloseReason),
        ("`sockpair_flows_refused_total`:", Refusal),
        ("`sockpair_datagrams_dropped_total`:", Drop),
    ],
)
def test_every_reason_is_there(
    metric: str, words: type[CloseReason] | type[Refusal] | type[Drop]
) -> None:
    assert first_cells(table_after(metric)) == {word.value for word in words}


def logged_events() -> Iterator[str]:
    """Every event that the program logs, by name."""
    for path in (ROOT / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.func.attr in CALLS
                and isinstance(node.args[0], ast.Constant)
            ):
                yield node.args[0].value


def test_every_event_of_the_log_is_there() -> None:
    assert first_cells(section("## The log")) == {*logged_events(), "log_lines_dropped"}


def test_every_fault_has_a_test_that_exists() -> None:
    _, _, *rows = table_after("## Faults, and what happened").splitlines()
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", row)
        assert named, row
        for path, name in named:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_every_metric_of_the_alerts_exists() -> None:
    known = {entry.name for entry in CATALOGUE}
    named = set(re.findall(r"\b(?:sockpair|process)_[a-z_]+", ALERTS.read_text()))
    assert named <= known


@pytest.mark.peers("promtool")
def test_prometheus_takes_the_alerts() -> None:
    promtool = peer("promtool")
    done = subprocess.run(
        [promtool, "check", "rules", ALERTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.peers("nft")
def test_nft_takes_the_rules(tmp_path: Path) -> None:
    nft = peer("nft")
    (rules,) = re.findall(r"```nft\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "rules").write_text(rules)
    done = subprocess.run(
        ["unshare", "--net", nft, "--check", "--file", tmp_path / "rules"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"not permitted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
