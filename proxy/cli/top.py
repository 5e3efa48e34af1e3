"""``sockpair top``: the flows that move most, live in the terminal.

Strategy: a thread follows the events of the API and puts them on the board; the command itself
waits for keys, and draws. What is drawn is decided in ``screen``. Without a terminal there is
nothing to redraw: the table is read twice, a second apart, and printed once.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from typing import Any, Final

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from proxy.cli.board import LOOK, ORDERS, Board
from proxy.cli.client import AdminClient, admin_option
from proxy.cli.columns import write_table
from proxy.cli.screen import Screen, Wanted, flow_columns
from proxy.cli.table import filter_options
from proxy.observe.media import does_not_answer

EVENTS: Final = "/api/v1/events"
FLOWS: Final = "/api/v1/flows"

REDRAW: Final = 0.5
"""Seconds until what has changed is drawn, if no key is pressed before."""

ESCAPES: Final = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b": "escape",
    b"\n": "\r",
    b"\x08": "\x7f",
}
"""What terminals send for keys that are no characters (console_codes(4), xterm's ctlseqs)."""

KEYS_READ: Final = 1024

SIGNALLED: Final = 128
"""The exit code of who was ended by a signal, without its number."""


@click.command()
@filter_options("listener", "client", "endpoint", "transport", "server_name", "min_bytes")
@click.option(
    "--sort", type=click.Choice([*ORDERS]), default="rate", show_default=True, help="What is first."
)
@click.option("-n", "--limit", type=click.IntRange(1), default=50, help="Rows, if in a pipe.")
@admin_option
def top(admin: str, sort: Any, limit: int, **params: Any) -> None:
    """Show which flows move how much a second, live.

    Keys: arrows choose a flow, s or 1 to 6 sort, r turns the order round, / filters, p pauses, k
    kills the flow that is chosen and l limits it, both after a question, q quits. Where standard
    output, or input, is no terminal, the table is printed once.
    """
    client = AdminClient(admin)
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(KeyboardInterrupt), _ends_in_order():
            _watch(client, params, Screen(Board(), order=sort))
    else:
        _print(client, params, sort, limit)


def _print(client: AdminClient, params: dict[str, Any], sort: Any, limit: int) -> None:
    """Print the table once, with the rates of a second."""
    board = Board()
    for turn in range(2):
        answer = client.get(FLOWS, params)
        rows = answer["flows"]
        now = time.time()
        board.hear({"event": "snapshot", "time": now, "silent": answer.get("silent", [])})
        for row in rows:
            board.hear({"event": "flow", "flow": row})
        board.hear({"event": "live", "time": now})
        board.hear({"event": "counters", "time": now, "flows": rows, "omitted": 1})
        if not turn:
            Event().wait(LOOK)
    write_table(flow_columns(board.now), board.lines(sort)[:limit])
    if board.silent:
        click.echo(f"{does_not_answer(board.silent)}: flows are missing", err=True)


def _watch(client: AdminClient, params: dict[str, Any], screen: Screen) -> None:
    """Draw until it is time to end."""
    following = Following(client, params, screen.board)
    console = Console()
    with (
        _keys_at_once(sys.stdin.fileno()),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while not screen.done:
            following.check()
            with following.lock:
                screen.board.pass_time(time.time())
                lines = screen.lines(console.width, console.height)
            text = Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop")
            live.update(text, refresh=True)
            for key in _keys(sys.stdin.fileno()):
                with following.lock:
                    wanted = screen.press(key)
                if wanted is not None:
                    screen.said = _do(client, wanted)


class Following:
    """Puts what happens on a board, in a thread of its own.

    Args:
        client: the line to sockpair.
        params: which flows.
        board: where they go.

    Attributes:
        lock: of the board.

    """

    def __init__(self, client: AdminClient, params: dict[str, Any], board: Board) -> None:
        self.lock = Lock()
        self._client = client
        self._params = {**params, "format": "ndjson", "counters": "true"}
        self._board = board
        self._failure: Exception | None = None
        Thread(target=self._follow, daemon=True).start()

    def check(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self._failure is not None:
            raise self._failure

    def _follow(self) -> None:
        try:
            for message in self._client.follow(EVENTS, self._params):
                with self.lock:
                    self._board.hear(message)
        except Exception as exc:
            self._failure = exc


def _do(client: AdminClient, wanted: Wanted) -> str:
    """Kill or limit a flow; say how it went."""
    try:
        if wanted.deed == "kill":
            client.delete(f"{FLOWS}/{wanted.id}")
            return f"killed flow {wanted.id}"
        limit = {"id": wanted.id, "flow_bandwidth": wanted.bandwidth}
        number = client.post("/api/v1/limits", limit)["number"]
    except click.ClickException as exc:
        return exc.format_message()
    return f'flow {wanted.id} is limited; "sockpair limit --lift {number}" takes it back'


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """Let who ends us (``timeout 60 sockpair top``, a session that goes) have a terminal back.

    The exit code is then what shells say of the signal.
    """

    def end(number: int, _: object) -> None:
        sys.exit(SIGNALLED + number)

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keys_at_once(fd: int) -> Iterator[None]:
    """Have the terminal give every key at once, and show none."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _keys(fd: int) -> list[str]:
    """The keys that were pressed, or are before it is time to redraw."""
    ready, _, _ = select.select([fd], [], [], REDRAW)
    if not ready:
        return []
    data = os.read(fd, KEYS_READ)
    if not data:  # the terminal has gone
        return ["q"]
    return list(parse_keys(data))


def parse_keys(data: bytes) -> Iterator[str]:
    """Divide what a terminal sent into keys."""
    while data:
        found = max((each for each in ESCAPES if data.startswith(each)), key=len, default=None)
        if found is None:
            text = data.decode("utf-8", "replace")
            yield text[0]
            data = text[1:].encode()
        else:
            yield ESCAPES[found]
            data = data[len(found) :]
