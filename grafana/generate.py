"""Write the dashboards: ``python -m grafana.generate`` from the checkout.

The JSON files are what Grafana reads, and are kept; a test holds them to what this writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.flows import flows
from grafana.listener import listener
from grafana.overview import overview
from grafana.upstream import upstream

BOARDS: Final = {
    "overview": overview,
    "listener": listener,
    "upstream": upstream,
    "flows": flows,
}

FOLDER: Final = Path(__file__).parent / "dashboards"


def written(name: str) -> str:
    """A dashboard as its file has it."""
    return (
        JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(BOARDS[name]().build())
        + "\n"
    )


def main() -> None:
    """Write all of them."""
    for name in BOARDS:
        (FOLDER / f"{name}.json").write_text(written(name))


if __name__ == "__main__":
    main()
