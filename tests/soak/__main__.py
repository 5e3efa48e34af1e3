"""The command of the soak: ``python -m tests.soak --minutes 30 [--workers N] [--seed N]``.

It prints one report, and what is not as it must be; then it exits with 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import trio

from tests.soak.soak import soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="an empty folder, to keep logs and files")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sockpair-soak-") as temporary:
        folder = asked.folder or Path(temporary)
        outcome = trio.run(soak, folder, 60 * asked.minutes, asked.workers, asked.seed)
    print(outcome.report)
    for fault in outcome.faults:
        print(f"FAULT {fault}")
    print("all as it must be" if not outcome.faults else f"{len(outcome.faults)} faults")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
