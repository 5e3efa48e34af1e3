"""``sockpair demo``: the main job on one machine, with nothing to set up.

Endpoints, proxy and clients run in this process, on loopback, on ports that are free. On a terminal
the live table is redrawn; in a pipe it is written once, at the end, with the summary. A terminal
that hangs up (SIGHUP) ends it, as Control-C does.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import trio
from rich.console import Console
from rich.live import Live
from rich.text import Text

from proxy.cli.columns import flow_columns, table_lines
from proxy.cli.demo_peers import (
    CLIENTS,
    answer_datagrams,
    bound_datagram_socket,
    dns_answer,
    echo,
    echo_streams,
)
from proxy.cli.serve import serve
from proxy.config.load import parse
from proxy.core.address import Address, parse_address
from proxy.core.query import FlowQuery
from proxy.core.units import format_size

if TYPE_CHECKING:
    from proxy.control.house import House
    from proxy.control.steward import Steward
    from proxy.engine.port import RelayCounters

ROWS = 20
"""Flows shown; the largest first."""

REDRAW = 0.5
"""Seconds between two tables."""

CONFIG = """
[admin]
socket = "{socket}"
http = "127.0.0.1:0"
[engine]
drain_timeout = "1ms"
[log]
flows = "off"
level = "warning"
[listener.echo]
listen = "tcp://127.0.0.1:0"
upstream = "echo"
[listener.echo-udp]
listen = "udp://127.0.0.1:0"
upstream = "echo-udp"
[listener.dns]
listen = "udp://127.0.0.1:0"
upstream = "dns"
[upstream.echo]
endpoints = ["127.0.0.1:{echo}"]
[upstream.echo-udp]
endpoints = ["127.0.0.1:{echo_udp}"]
[upstream.dns]
endpoints = ["127.0.0.1:{dns}"]
"""


@click.command()
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop by itself after so long.")
def demo(seconds: float | None) -> None:
    """Show what sockpair does: endpoints, proxy, clients and the live table, on loopback."""
    trio.run(_demo, seconds)


async def _demo(seconds: float | None) -> None:
    async with trio.open_nursery() as nursery:
        with ExitStack() as opened:
            (tcp,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            udp = opened.enter_context(await bound_datagram_socket())
            dns = opened.enter_context(await bound_datagram_socket())
            nursery.start_soon(trio.serve_listeners, echo_streams, [tcp])
            nursery.start_soon(answer_datagrams, udp, echo)
            nursery.start_soon(answer_datagrams, dns, dns_answer)
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="sockpair-"))
            text = CONFIG.format(
                socket=Path(folder) / "admin.sock",
                echo=tcp.socket.getsockname()[1],
                echo_udp=udp.getsockname()[1],
                dns=dns.getsockname()[1],
            )
            await serve(parse(text, "the demo's configuration"), _Show(seconds).play)
            nursery.cancel_scope.cancel()


class _Show:
    """What the demo does while it runs.

    Args:
        seconds: how long; None until a signal comes.

    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.live = sys.stdout.isatty()

    async def play(self, house: House, _steward: Steward) -> None:
        """Send clients, show the table, and write the summary when it is time to stop."""
        listening = (await house.worker.status())["listening"]
        addresses = {row["listener"]: parse_address(row["local"]) for row in listening}
        width = shutil.get_terminal_size().columns if self.live else None
        hints = _hints(addresses, house, width)
        click.echo("\n".join(hints))
        async with trio.open_nursery() as clients:
            for listener, visits in CLIENTS.items():
                for visit in visits:
                    clients.start_soon(visit, addresses[listener])
            await self._show_until_stopped(house)
            table = await _table(house, ROWS, width=None)
            clients.cancel_scope.cancel()
        if not self.live:
            click.echo("\n".join(table))
        click.echo(_summary(await house.worker.counters()))

    async def _show_until_stopped(self, house: House) -> None:
        with (
            trio.move_on_after(self.seconds if self.seconds is not None else float("inf")),
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
        ):
            async with trio.open_nursery() as nursery:
                if self.live:
                    nursery.start_soon(_redraw, house)
                async for _ in signals:
                    nursery.cancel_scope.cancel()


async def _redraw(house: House) -> None:
    """Draw the table again and again on the terminal, until cancelled."""
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows = max(1, min(ROWS, console.height // 2 - 2))  # of two lines each, below a head
            lines = await _table(house, rows, width=console.width)
            live.update(Text.from_ansi("\n".join(["", *lines])), refresh=True)
            await trio.sleep(REDRAW)


async def _table(house: House, limit: int, width: int | None) -> Sequence[str]:
    rows: Any = (await house.worker.flows(FlowQuery(sort="bytes", limit=limit)))["rows"]
    columns = flow_columns(recent=False, exact=False, now=time.time())
    return table_lines(columns, rows, width=width)


def _hints(addresses: dict[str, Address], house: House, width: int | None) -> list[str]:
    """What to try; where there is no room beside a command, its meaning stands above it."""
    port = {name: address[1] for name, address in addresses.items()}
    control, http = (socket.getsockname() for socket in house.admin)
    commands = {
        f"nc 127.0.0.1 {port['echo']}": "type, and it comes back through the proxy",
        f"nc -u 127.0.0.1 {port['echo-udp']}": "the same with datagrams",
        f"dig @127.0.0.1 -p {port['dns']} example.com": "a DNS answer through the proxy",
        f"http://127.0.0.1:{http[1]}/": "the page, for a browser",
        f"curl http://127.0.0.1:{http[1]}/metrics": "what Prometheus scrapes",
        f"{_own_command()} flows --admin {shlex.quote(control)}": "the socket-pair table",
    }
    longest = max(map(len, commands))
    lines = [f"  {command:{longest}}   {what}" for command, what in commands.items()]
    if width is not None and max(map(len, lines)) > width:
        lines = [
            line for command, what in commands.items() for line in (f"  # {what}", f"  {command}")
        ]
    title = "sockpair relays on loopback. Try it from another terminal:"
    return [title, *lines, "Control-C ends the demo.", ""]


def _own_command() -> str:
    """What another terminal must type for ``sockpair``: where it was started, if not on PATH."""
    if shutil.which("sockpair"):
        return "sockpair"
    started = Path(sys.argv[0]).absolute()
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m proxy"
    return shlex.quote(str(started))


def _summary(counters: RelayCounters) -> str:
    lines = ["", "What went through:"]
    for row in counters["listeners"]:
        original, reply = format_size(row["original"]["sent"]), format_size(row["reply"]["sent"])
        flows = f"{row['opened']} {'flow' if row['opened'] == 1 else 'flows'}"
        lines.append(f"  {row['listener']:9} {flows:>9}, {original} to the endpoint, {reply} back")
    return "\n".join(lines)
