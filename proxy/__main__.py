"""``python -m proxy`` is the command ``sockpair``."""

from proxy.cli import main

main(prog_name="sockpair")
