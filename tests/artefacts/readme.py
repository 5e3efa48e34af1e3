"""The parts of the README that are generated: the tables of metrics.

``python -m tests.artefacts.readme`` writes them; a test compares them.
"""

from __future__ import annotations

from pathlib import Path

from proxy.observe.catalogue import CATALOGUE
from proxy.observe.exposition import Family
from proxy.observe.flow_metrics import FLOW_CATALOGUE, OMITTED, SILENT

README = Path(__file__).parents[2] / "README.md"
BEGIN = "<!-- metrics: generated from proxy/observe/catalogue.py -->\n"
HEAD = "\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"
FLOWS = "\n`/metrics/flows` has series of single flows, for a scrape job of its own:\n"
END = "<!-- end of metrics -->\n"


def metrics_table() -> str:
    """Every metric, its type, its labels and its meaning, as Markdown."""
    of_flows = map(_row, (OMITTED, SILENT, *FLOW_CATALOGUE))
    return "".join([HEAD, *map(_row, CATALOGUE), FLOWS, HEAD, *of_flows, "\n"])


def _row(entry: Family) -> str:
    return f"| `{entry.name}` | {entry.type} | {', '.join(entry.labels)} | {entry.help} |\n"


def with_metrics(text: str) -> str:
    """The README's text with the table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + metrics_table() + END + after


if __name__ == "__main__":
    README.write_text(with_metrics(README.read_text()))
