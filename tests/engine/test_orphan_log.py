"""What workers write whose supervisor is gone: whole lines, though others write there as well."""

from __future__ import annotations

import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from proxy.engine.flow_lines import whole_lines
from proxy.engine.orphan_log import PIECE_BYTES, OrphanLog
from tests.engine.lab import PATIENCE

lines = st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b".")), max_size=9)


@given(lines, st.integers(1, 30))
async def test_a_text_is_written_by_whole_lines(lines: list[bytes], most: int) -> None:
    text = b"".join(line + b"\n" for line in lines)
    rest, pieces = memoryview(text), list[bytes]()
    while rest:
        pieces.append(bytes(whole_lines(rest, most)))
        rest = rest[len(pieces[-1]) :]
    assert b"".join(pieces) == text
    assert all(len(piece) <= most for piece in pieces)
    if all(len(line) < most for line in lines):
        assert all(piece.endswith(b"\n") for piece in pieces)


async def test_two_that_write_to_one_pipe_tear_no_line() -> None:
    out, into = os.pipe()
    texts = [b"".join(b"%d%d\n" % (who, number) * 9 for number in range(2000)) for who in (1, 2)]
    came = bytearray()

    async def read() -> None:
        while len(came) < sum(map(len, texts)):
            came.extend(await trio.to_thread.run_sync(os.read, out, PIECE_BYTES // 3))

    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                for who, text in enumerate(texts):
                    nursery.start_soon(OrphanLog(who, into).lines, text)
    finally:
        os.close(out)
        os.close(into)
    assert sorted(bytes(came).splitlines()) == sorted(b"".join(texts).splitlines())


async def test_a_pipe_that_nobody_reads_any_more_is_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.engine.orphan_log.ROOM_SECONDS", 0.01)
    out, into = os.pipe()
    await OrphanLog(0, into).lines(b"x\n" * 100_000)  # more than it has room for
    os.close(out)
    await OrphanLog(0, into).event({"event": "late"})
    os.close(into)
