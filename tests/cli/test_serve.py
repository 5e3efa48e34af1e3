"""What is logged of a start that fails is written, though no task is there for it."""

from __future__ import annotations

from typing import NoReturn

import pytest
import structlog

from proxy.cli import serve as serve_module
from proxy.config.load import parse
from proxy.control.listen import BindError

CONFIG = """
[listener.x]
listen = "tcp://127.0.0.1:0"
upstream = "x"
[upstream.x]
endpoints = ["127.0.0.1:9"]
"""


async def stay(*_: object) -> None:
    """Nothing goes on."""


async def test_what_was_logged_before_a_start_failed_is_written(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: object) -> NoReturn:
        structlog.get_logger().error("predecessors_in_the_way")
        raise BindError("listener.x", "tcp://127.0.0.1:9", OSError(13, "no"))

    monkeypatch.setattr(serve_module, "open_house", fail)
    with pytest.raises(BindError):
        await serve_module.serve(parse(CONFIG, "f"), stay)
    assert '"event":"predecessors_in_the_way"' in capfd.readouterr().err
