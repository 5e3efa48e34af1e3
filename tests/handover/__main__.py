"""The command of the driver: a crowd of flows, and sockpair changing its process under it.

    python -m tests.handover --flows 1000 --datagram-flows 1000 --upgrades 100 [--kills 50]

It prints what it does, one report, and what is not as it must be; then it exits with 1.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import trio

from tests.handover.driver import Plan, drive


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.handover", description=__doc__)
    parser.add_argument("--flows", type=int, default=1000)
    parser.add_argument("--datagram-flows", type=int, default=1000)
    parser.add_argument("--upgrades", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=0, help="under a service manager")
    parser.add_argument("--kills", type=int, default=0, help="of workers")
    parser.add_argument("--deaths", type=int, default=0, help="of supervisors, under one too")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--survive", choices=["restart", "crash", "off"])
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two deeds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="an empty folder, to keep logs and files")
    asked = vars(parser.parse_args())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="sockpair-handover-") as temporary:
        folder = asked.pop("folder") or Path(temporary)
        folder.mkdir(exist_ok=True)
        outcome = trio.run(drive, folder, Plan(**asked), lambda line: print(line, flush=True))
    print(outcome.report)
    for fault in outcome.faults:
        print(f"FAULT {fault}")
    print("all as it must be" if not outcome.faults else f"{len(outcome.faults)} faults")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
