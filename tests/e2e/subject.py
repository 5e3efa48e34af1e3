"""sockpair itself, as its operators meet it: started as a program, asked through its admin socket.

Nothing here looks inside the process except the kernel's own books of it in /proc.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import Command, Program, free_port, program, start

Row: TypeAlias = dict[str, Any]

COMMAND: Final = (sys.executable, "-m", "proxy")


@dataclass(frozen=True)
class Forward:
    """A listener with an upstream of its own, of the same name.

    Attributes:
        name: of both.
        transport: tcp or udp.
        endpoints: each ``host:port``.
        host: to listen on.
        limits: per flow.
        more: further keys of the upstream, and tables, as the file has them.

    """

    name: str
    transport: str
    endpoints: Sequence[str]
    host: str = "127.0.0.1"
    limits: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    more: str = ""

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def text(self) -> str:
        """The address as people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def toml(self) -> str:
        limits = "".join(f'{key} = "{value}"\n' for key, value in self.limits.items())
        return (
            f'[listener.{self.name}]\nlisten = "{self.transport}://{self.text}"\n'
            f'upstream = "{self.name}"\n'
            f"[listener.{self.name}.limits.per_flow]\n{limits}"
            f"[upstream.{self.name}]\nendpoints = {json.dumps(list(self.endpoints))}\n"
            f"{self.more}"
        )


@dataclass(frozen=True)
class UnixForward(Forward):
    """A listener at a Unix socket; its host is the path."""

    @property
    def text(self) -> str:
        return self.host


@dataclass(frozen=True)
class Settings:
    """A configuration file, and what a test must know of it."""

    folder: Path
    forwards: Sequence[Forward]
    engine: Mapping[str, int | str] = field(default_factory=dict)
    admin_port: int = field(default_factory=free_port)

    @property
    def admin(self) -> Path:
        return self.folder / "admin.sock"

    @property
    def file(self) -> Path:
        return self.folder / "sockpair.toml"

    def write(self) -> None:
        keys = {"drain_timeout": "1ms", "drain_spread": "1ms", **self.engine}
        engine = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        self.file.write_text(
            f'[admin]\nsocket = "{self.admin}"\nhttp = "127.0.0.1:{self.admin_port}"\n'
            f'[engine]\n{engine}[log]\nformat = "json"\n'
            + "".join(forward.toml for forward in self.forwards)
        )


class Metrics:
    """One scrape, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def sum(self, name: str, **labels: str) -> int:
        """The sum of the samples that have these labels; there must be one at least."""
        values = [
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert values, f"no sample {name} with {labels}"
        return int(sum(values))

    def by(self, name: str, key: str, **labels: str) -> Counter[str]:
        """The samples that have these labels, added up by another label."""
        found: Counter[str] = Counter()
        for sample in self._samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                found[sample.labels[key]] += int(sample.value)
        return found


@dataclass(frozen=True)
class Books:
    """What all three books of one listener agree on: the table, the metrics and the flow log."""

    rows: list[Row]

    @property
    def original(self) -> int:
        return sum(row["original"]["bytes"] for row in self.rows)

    @property
    def reply(self) -> int:
        return sum(row["reply"]["bytes"] for row in self.rows)

    @property
    def datagrams(self) -> tuple[int, int]:
        """From clients, and from endpoints."""
        return (
            sum(row["original"]["packets"] for row in self.rows),
            sum(row["reply"]["packets"] for row in self.rows),
        )

    @property
    def reasons(self) -> Counter[str]:
        return Counter(row["close_reason"] for row in self.rows)


class Sockpair:
    """A running sockpair."""

    def __init__(self, settings: Settings, started: Program) -> None:
        self.settings = settings
        self.program = started

    @property
    def pid(self) -> int:
        return self.program.pid

    async def flows(self, **filters: str | int) -> list[Row]:
        """Rows of the flow table; ``recent="true"`` for those that have ended."""
        answer = json.loads(await self.get(f"/api/v1/flows?{urlencode(filters)}"))
        assert answer["matched"] >= len(answer["flows"])  # one that ends meanwhile has no row
        rows: list[Row] = answer["flows"]
        return rows

    async def status(self) -> Row:
        status: Row = json.loads(await self.get("/api/v1/status"))
        return status

    async def metrics(self) -> Metrics:
        return Metrics(await self.get("/metrics"))

    async def get(self, path: str) -> str:
        status, body = await self.ask("GET", path)
        assert status == 200, f"GET {path}: {status} {body}"
        return body

    async def ask(self, method: str, path: str) -> tuple[int, str]:
        """One request to the admin socket; status and body."""
        return await trio.to_thread.run_sync(_request, self.settings.admin, method, path)

    def log_records(self, event: str | None = None) -> list[Row]:
        """The JSON lines of the log, all or those of one event."""
        lines = self.program.errors.read_text().splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if event in (None, record.get("event"))]

    def memory(self) -> int:
        """Resident memory in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        return await self.program.stop(number)

    async def wait_flows(self, count: int, **filters: str | int) -> list[Row]:
        """Wait until so many live flows are in the table."""

        async def look() -> tuple[list[Row]] | None:
            rows = await self.flows(**filters)
            return (rows,) if len(rows) == count else None

        found: tuple[list[Row]] = await until(look, f"{count} live flows")
        return found[0]

    async def books(self, name: str, flows: int | None = None) -> Books:
        """Wait until a listener's flows have ended, and prove that its three books agree.

        Args:
            name: of the listener.
            flows: how many flows there must have been; None for any.

        """
        await self.wait_flows(0, listener=name)
        rows = by_id(await self.flows(recent="true", listener=name))
        assert flows in (None, len(rows)), rows
        await until(
            lambda: len(self.logged(name)) >= len(rows), "the log to have all flows that ended"
        )
        same_rows(by_id(self.logged(name)), rows)
        metrics = await self.metrics()
        agree(name, rows, metrics)
        return Books(rows)

    def logged(self, name: str) -> list[Row]:
        """The flow log of a listener, as table rows."""
        records = [row for row in self.log_records("flow") if row["listener"] == name]
        for record in records:
            duration = record["closed"] - record["opened"]
            assert abs(record["duration"] - duration) < 1e-3, record
        return [{key: row[key] for key in ROW_KEYS} for row in records]


ROW_KEYS: Final = (
    "id",
    "listener",
    "upstream",
    "transport",
    "state",
    "client",
    "endpoint",
    "opened",
    "last_active",
    "closed",
    "original",
    "reply",
    "close_reason",
    "close_side",
    "close_kind",
    "half_closed",
    "unsent",
    "limits",
    "stays",
    "source",
    "credentials",
    "endpoint_credentials",
    "responders",
    "tlvs",
    "server_name",
    "alpn",
    "slowed_by",
    "legs",
    "stalled",
)

TIMES: Final = frozenset({"opened", "last_active", "closed"})


def by_id(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["id"])


SAMPLED: Final = frozenset({"slowed_by", "legs", "stalled"})


def lasting(rows: list[Row]) -> list[Row]:
    """Rows without what may be sampled anew between two answers."""
    return [{key: row[key] for key in row if key not in SAMPLED} for row in rows]


def same_rows(one: list[Row], other: list[Row]) -> None:
    """Prove that two lists have the same flows; their times may differ by rounding."""
    for left, right in zip(one, other, strict=True):
        for key in ROW_KEYS:
            if key in TIMES:
                assert abs(left[key] - right[key]) < 1e-3, key
            else:
                assert left[key] == right[key], key


def agree(name: str, rows: list[Row], metrics: Metrics) -> None:
    """Prove that a scrape says what the rows of all flows of a listener say."""
    opened = metrics.sum("sockpair_flows_opened_total", listener=name)
    assert opened == len(rows)
    for reason, count in Counter(row["close_reason"] for row in rows).items():
        closed = metrics.sum("sockpair_flows_closed_total", listener=name, reason=reason)
        assert closed == count, reason
    assert metrics.sum("sockpair_flows_closed_total", listener=name) == opened
    assert metrics.sum("sockpair_flows_closed_total", listener=name, reason="internal") == 0
    assert metrics.sum("sockpair_flow_duration_seconds_count", listener=name) == opened
    for leg, direction in (("client", "original"), ("endpoint", "reply")):
        received = metrics.sum(f"sockpair_{leg}_received_bytes_total", listener=name)
        assert received == sum(row[direction]["bytes"] for row in rows), leg
        if rows and rows[0]["transport"] == "udp":
            received = metrics.sum(f"sockpair_{leg}_received_datagrams_total", listener=name)
            assert received == sum(row[direction]["packets"] for row in rows), leg
    assert metrics.sum("sockpair_buffered_bytes", listener=name) == 0


def agree_nothing_lost(name: str, metrics: Metrics) -> None:
    """Prove that all that one leg received was sent on the other."""
    for source, target in (("client", "endpoint"), ("endpoint", "client")):
        received = metrics.sum(f"sockpair_{source}_received_bytes_total", listener=name)
        assert metrics.sum(f"sockpair_{target}_sent_bytes_total", listener=name) == received


@asynccontextmanager
async def sockpair(
    settings: Settings, *, descriptor_limit: int | None = None, wrapper: Command = ()
) -> AsyncIterator[Sockpair]:
    """Run sockpair until the block ends; ready when all its listeners are."""
    settings.write()
    async with program(
        [*wrapper, *command_of(settings, descriptor_limit)],
        settings.folder,
        lambda: _is_ready(settings.admin),
        name="sockpair",
    ) as started:
        yield Sockpair(settings, started)


async def start_sockpair(settings: Settings, wrapper: Command = ()) -> Program:
    """Start sockpair where it is not expected to become ready."""
    settings.write()
    return await start([*wrapper, *command_of(settings)], settings.folder, name="sockpair")


def command_of(settings: Settings, descriptor_limit: int | None = None) -> list[str | Path]:
    command: list[str | Path] = [*COMMAND, "run", "-c", settings.file]
    if descriptor_limit is not None:
        command = ["prlimit", f"--nofile={descriptor_limit}", "--", *command]
    return command


async def _is_ready(admin: Path) -> bool:
    try:
        status, _ = await trio.to_thread.run_sync(_request, admin, "GET", "/readyz")
    except (OSError, http.client.HTTPException):
        return False
    return status == 200


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


def _request(admin: Path, method: str, path: str) -> tuple[int, str]:
    connection = _UnixConnection(admin)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()
