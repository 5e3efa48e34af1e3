"""A journald that was stopped and is there again: the log goes to it by a stream of our own."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import structlog

from proxy.observe import journal
from proxy.observe.journal import is_journal
from proxy.observe.log import configure
from proxy.observe.sink import LogSink


def stream_of(monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
    """Say what systemd says of a descriptor that it has connected to journald."""
    status = os.fstat(fd)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")


def test_a_stream_that_has_ended_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ADDRESS", str(tmp_path / "stdout"))
    ours, theirs = socket.socketpair()
    with ours, socket.socket(socket.AF_UNIX) as journald:
        stream_of(monkeypatch, ours.fileno())
        sink = LogSink(ours.fileno(), lambda count: f"{count} lost")
        theirs.close()
        sink.put("nobody is there")
        sink.flush()
        journald.bind(journal.ADDRESS)
        journald.listen()
        sink.put("nobody was there")
        sink.flush()
        sink.put("again")
        sink.flush()
        assert sink.dropped == 2
        came, _ = journald.accept()
        with came:
            assert came.recv(1000) == journal.HEADER + b"again\n2 lost\n"


def test_events_for_journald_have_their_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    before = structlog.get_config()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream_of(monkeypatch, ours.fileno())
        for format in ("json", "text"):
            sink = configure(format, "debug", fd=ours.fileno())
            log = structlog.get_logger()
            for level in ("debug", "info", "warning", "error", "critical"):
                getattr(log, level)("it_happened")
            try:
                raise ValueError
            except ValueError:
                log.exception("it_crashed")
            sink.put("a flow")
            sink.flush()
            lines = theirs.recv(100_000).decode().splitlines()
            assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
            assert {line[:3] for line in lines[5:-1]} == {"<3>"}
            assert lines[-1] == "a flow"
    structlog.configure(**before)


def test_whoever_is_no_journald_gets_no_priorities() -> None:
    before = structlog.get_config()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = configure("json", "debug", fd=ours.fileno())
        structlog.get_logger().warning("it_happened")
        sink.flush()
        assert theirs.recv(1000).startswith(b"{")
    structlog.configure(**before)


def test_a_socket_that_is_no_journal_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ADDRESS", str(tmp_path / "stdout"))
    ours, theirs = socket.socketpair()
    with ours, socket.socket(socket.AF_UNIX) as journald:
        journald.bind(journal.ADDRESS)
        journald.listen()
        journald.setblocking(False)
        sink = LogSink(ours.fileno(), str)
        theirs.close()
        sink.put("lost")
        sink.flush()
        with pytest.raises(BlockingIOError):
            journald.accept()


def test_a_descriptor_that_is_closed_is_no_journal() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    os.close(theirs)
    assert not is_journal(ours, {"JOURNAL_STREAM": "8:1"})
