"""What ``sockpair limit`` says of a command that limits nothing, before anybody is asked."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from proxy.cli.limit import limit


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--client", "192.0.2.0/24"],
            "say what to limit: --bandwidth, --flow-bandwidth, --flows or --bytes",
        ),
        (["--flows", "1"], "say which flows: --listener, --client, --endpoint or --id"),
        (["--for", "10m"], "say what to limit"),
    ],
)
def test_what_is_missing_is_named_by_its_options(options: list[str], said: str) -> None:
    answer = CliRunner().invoke(limit, ["--admin", "/nowhere/admin.sock", *options])
    assert answer.exit_code == 2
    assert said in answer.output
