"""The configuration: every table of the file, every key, its type, its default, its meaning.

The whole contract of the file is here, and that of upstreams in ``upstream``. To add a key is to
add a line; its check, its messages, its place in the JSON Schema and its line numbers follow from
that. What cannot be said of one key alone is said in ``whole``. A key that exists works; one that
is planned does not exist.

Objects are frozen and legal. They are made from what TOML holds (see ``values``), as a rule by
``load``; then durations are seconds, sizes are bytes.
"""

from __future__ import annotations

from typing import Any, Final, Self

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from proxy.config import whole
from proxy.config.keys import DSCP_KEY, INTERFACE_KEY, MARK_KEY, PRIORITY_KEY, REQUIRED, Table, key
from proxy.config.names import Names
from proxy.config.packets import Dscp, Interface
from proxy.config.prefixes import Prefixes, PrefixesFile, Weights
from proxy.config.routes import Routes
from proxy.config.upstream import Upstream
from proxy.config.values import (
    ADMIN_HTTP_DEFAULT,
    ADMIN_SOCKET_DEFAULT,
    Account,
    Accounts,
    AdminHttp,
    Bandwidth,
    BufferSize,
    FileMode,
    Groups,
    HostNames,
    Listen,
    LogFlows,
    LogFormat,
    LogLevel,
    Name,
    PmtuPolicy,
    Rate,
    Size,
    SocketPath,
    Survive,
    Timeout,
    WhenFull,
    Workers,
)
from proxy.core.address import DATAGRAMS, STREAMS, UNIX_SOCKETS, Transport

IDLE_DEFAULT: Final = {
    Transport.TCP: 124 * 60.0,  # RFC 5382 REQ-5: not less than 2 hours and 4 minutes
    Transport.UDP: 5 * 60.0,  # RFC 4787 REQ-5: 5 minutes or more is recommended
    Transport.UNIX: 124 * 60.0,  # as their kin of IP
    Transport.UNIXGRAM: 5 * 60.0,
}
"""Seconds."""

WHOLE: Final = "whole"
"""The error type of what is wrong between keys; its message stands in the error's context."""

IP_SOCKETS: Final = (Transport.TCP, Transport.UDP)
TCP_ALONE: Final = (Transport.TCP,)
UDP_ALONE: Final = (Transport.UDP,)


class Admin(Table):
    """How operators and their programs reach the running proxy."""

    socket: SocketPath = key(
        ADMIN_SOCKET_DEFAULT, 'Unix socket with full control. "" turns it off.'
    )
    http: AdminHttp = key(
        ADMIN_HTTP_DEFAULT, 'Read-only HTTP: /metrics, the page, the API. "" turns it off.'
    )
    hosts: HostNames = key(
        [],
        "Names that may stand in the Host header beside IP addresses and localhost; of proxies "
        "before http, or of this host.",
        example=["proxy.example.net"],
    )
    mode: FileMode = key("0660", "Permissions of the Unix socket's file.")
    group: Account | None = key(
        None,
        "Group of the Unix socket's file. Default: that of who runs this.",
        example="sockpair-admin",
    )
    users: Accounts = key(
        [],
        "Users who may change something on the Unix socket; others who may open it can only read. "
        "[]: all who may open it.",
        example=["root", "operator"],
    )
    max_series: int = key(
        1_000, "Flows that /metrics/flows shows at most, the largest first.", ge=1, le=100_000
    )


class Engine(Table):
    """The workers, the flow table, and how it is emptied."""

    workers: Workers = key(1, 'Processes that relay; "auto" is one for each core.')
    table_limit: int = key(
        100_000, "Most live flows; then one goes for another, or is refused.", ge=1, le=10_000_000
    )
    recent: int = key(1_000, "Closed flows that can still be found.", ge=0, le=1_000_000)
    sample_rate: Rate = key(
        "1000/s",
        "TCP flows that the kernel is asked about, in each worker: round trips and the like.",
    )
    drain_timeout: Timeout = key("30s", "How long a drain lets flows end by themselves.")
    drain_rate: Rate = key("1000/s", "How many of those that are left it ends then.")
    drain_spread: Timeout = key(
        "10s", "How long it takes over that at most; it ends more at a time where it must."
    )


class Log(Table):
    """What is written to stderr."""

    format: LogFormat = key("auto", '"auto" is text on a terminal, else JSON.')
    flows: LogFlows = key("all", 'Which ended flows: "errors" leaves out those that finished.')
    level: LogLevel = key("info", "The least severe event that is written.")


FLOWS_KEY: Final = key(
    None, "Live flows at once. Default: no ceiling.", example=1000, ge=1, le=10_000_000
)
FLOW_RATE_KEY: Final = key(None, "New flows in the long run. Default: no ceiling.", example="500/s")
BANDWIDTH_KEY: Final = key(
    None,
    "Payload in each direction, divided fairly between those who want it. Default: no ceiling.",
    example="100Mbit/s",
)
BURST_KEY: Final = key(
    None,
    "New flows at once, beyond flow_rate. Default: what flow_rate brings in a second.",
    example=1000,
    ge=1,
    le=10_000_000,
)


class PerFlow(Table):
    """Limits of each flow."""

    connect: Timeout = key(
        "5s", "How long endpoints may take to accept, all attempts together. TCP.", only=STREAMS
    )
    idle: Timeout | None = key(
        None,
        "How long without payload, either way. Default: 124m for TCP, 5m for UDP.",
        example="10m",
    )
    half_closed: Timeout = key(
        "4m", "How long without payload once one side has ended. TCP.", only=STREAMS
    )
    unreplied: Timeout = key(
        "30s", "How long a flow lives until the endpoint has answered. UDP.", only=DATAGRAMS
    )
    linger: Timeout = key(
        "10s",
        "How long a reset waits for a peer that takes nothing of what came before it. TCP.",
        only=STREAMS,
    )
    duration: Timeout | None = key(
        None, "How long at most, busy or not. Default: no maximum.", example="8h"
    )
    bytes: Size | None = key(
        None,
        "Payload of its life, both directions together. Default: no maximum.",
        example="10GiB",
    )
    bandwidth_original: Bandwidth | None = key(
        None, "From the client to the endpoint. Default: no ceiling.", example="10MiB/s"
    )
    bandwidth_reply: Bandwidth | None = key(
        None, "From the endpoint to the client. Default: no ceiling.", example="50MiB/s"
    )
    datagram_rate: Rate | None = key(
        None,
        "Datagrams from the client. UDP. Default: no ceiling.",
        example="1000/s",
        only=DATAGRAMS,
    )
    amplification: int | None = key(
        None,
        "Bytes to the client for each one from it, until it has spoken again after an answer. UDP. "
        "Default: any.",
        example=10,
        only=DATAGRAMS,
        ge=1,
        le=1_000_000,
    )


class PerSource(Table):
    """Ceilings of each source: of all clients with one prefix, or of one user of a Unix socket."""

    prefix_v4: int = key(
        32, "Bits of an IPv4 address that name a source.", only=IP_SOCKETS, ge=0, le=32
    )
    prefix_v6: int = key(
        64, "Bits of an IPv6 address that name a source.", only=IP_SOCKETS, ge=0, le=128
    )
    flows: int | None = FLOWS_KEY
    flow_rate: Rate | None = FLOW_RATE_KEY
    burst: int | None = BURST_KEY
    bandwidth: Bandwidth | None = BANDWIDTH_KEY


class Limits(Table):
    """Ceilings of a listener."""

    flows: int | None = FLOWS_KEY
    flow_rate: Rate | None = FLOW_RATE_KEY
    burst: int | None = BURST_KEY
    bandwidth: Bandwidth | None = BANDWIDTH_KEY
    dry_run: bool = key(
        False, "Refuse, drop and hold back nothing because of limits, but for clocks: only count."
    )
    weights: Weights = key(
        {},
        "How much of bandwidth the sources of a prefix get beside others, whose weight is 1. "
        "The longest match decides.",
        example={"10.0.0.0/8": 4},
        only=IP_SOCKETS,
    )
    when_full: WhenFull = key(
        "refuse",
        'Whom flows or flow_rate keep out, here or per_source: "refuse" resets, "wait" holds. TCP.',
        only=STREAMS,
    )
    wait: Timeout = key("5s", "How long who is held waits, and is then refused. TCP.", only=STREAMS)
    wait_flows: int = key(
        1000, "How many wait at once; more are refused. TCP.", only=STREAMS, ge=1, le=1_000_000
    )
    per_source: PerSource = key({}, "Ceilings of each source.")
    per_flow: PerFlow = key({}, "Limits of each flow.")


class TcpOptions(Table):
    """Options of the sockets of TCP flows, on both sides."""

    nodelay: bool = key(True, "Send small pieces at once (TCP_NODELAY).")
    keepalive_idle: Timeout | None = key(
        None, "Probe a peer that has been silent so long. Default: never.", example="2m"
    )
    keepalive_interval: Timeout = key("30s", "Time between two probes.")
    keepalive_count: int = key(4, "Unanswered probes until the peer is given up.", ge=1, le=127)
    user_timeout: Timeout | None = key(
        None,
        "Give up a peer that acknowledges nothing so long. Default: the kernel's retries.",
        example="1m",
    )
    fastopen: int = key(
        0, "Connections that may bring data in their SYN and wait; 0 takes none.", ge=0, le=65535
    )
    mptcp: bool = key(False, "Accept Multipath TCP.")


class Listener(Table):
    """A local address that accepts flows for an upstream."""

    listen: Listen = key(
        REQUIRED, "Transport, IP address and port; or a Unix socket.", example="tcp://0.0.0.0:8080"
    )
    upstream: Name = key(REQUIRED, "Name of an [upstream.NAME] table.", example="web")
    allow: Prefixes = key(
        [],
        "Clients to accept; if any are named, no others. The longest match decides.",
        only=IP_SOCKETS,
    )
    deny: Prefixes = key([], "Clients to refuse. The longest match decides.", only=IP_SOCKETS)
    allow_file: PrefixesFile | None = key(
        None,
        "File with more of allow, one a line; read again at a reload. Default: none.",
        example="/etc/sockpair/allow.txt",
        only=IP_SOCKETS,
    )
    deny_file: PrefixesFile | None = key(
        None,
        "File with more of deny, one a line; read again at a reload. Default: none.",
        example="/etc/sockpair/deny.txt",
        only=IP_SOCKETS,
    )
    routes: Routes = key(
        {},
        "Upstreams by the server name that a TLS client asks for, and by the protocol (ALPN) "
        "behind a slash; all others go to upstream. TCP.",
        example={"www.example.org": "web", "*.example.org": "others"},
        only=TCP_ALONE,
    )
    hello_timeout: Timeout = key(
        "3s",
        "How long a TLS client may take to say where it wants to go, where there are routes. TCP.",
        only=TCP_ALONE,
    )
    route_metrics: bool = key(
        False,
        "Count flows by route, as sockpair_routed_flows_total: its label has what is written in "
        "routes, never what clients ask for. TCP.",
        only=TCP_ALONE,
    )
    proxy_from: Prefixes = key(
        [],
        "Proxies that must begin with a PROXY protocol header, over UDP each datagram with one of "
        "version 2, and are believed who the client is.",
        example=["10.0.0.0/8"],
        only=IP_SOCKETS,
    )
    proxy_only: bool = key(False, "Refuse who is not in proxy_from.", only=IP_SOCKETS)
    proxy_timeout: Timeout = key(
        "5s", "How long a PROXY protocol header may take. TCP.", only=TCP_ALONE
    )
    dual_stack: bool = key(False, 'On "[::]": accept IPv4 as well.', only=IP_SOCKETS)
    mode: FileMode = key("0660", "Permissions of a Unix socket's file.", only=UNIX_SOCKETS)
    owner: Account | None = key(
        None,
        "User who owns a Unix socket's file. Default: who runs this.",
        example="redis",
        only=UNIX_SOCKETS,
    )
    group: Account | None = key(
        None,
        "Group of a Unix socket's file. Default: that of who runs this.",
        example="www-data",
        only=UNIX_SOCKETS,
    )
    backlog: int = key(
        4096,
        "Connections waiting to be accepted; the kernel's bound is net.core.somaxconn. TCP.",
        only=STREAMS,
        ge=1,
        le=65535,
    )
    receive_buffer: BufferSize | None = key(
        None,
        "SO_RCVBUF; the kernel's bound is net.core.rmem_max. Default: the kernel's. UDP.",
        example="4MiB",
        only=UDP_ALONE,
    )
    transparent: bool = key(
        False,
        "Accept what TPROXY diverts, and leave for endpoints with the client's address, "
        "unless the upstream has a source.",
    )
    mark: int | None = MARK_KEY
    dscp: Dscp | None = DSCP_KEY
    priority: int | None = PRIORITY_KEY
    interface: Interface | None = INTERFACE_KEY
    pmtu: PmtuPolicy = key(
        "allow",
        'Datagrams longer than the path carries: "allow" fragments, "forbid" drops, "probe" is '
        '"forbid" by the interface\'s MTU alone, "system" is the kernel\'s default. UDP.',
        only=UDP_ALONE,
    )
    responses: int | None = key(
        None,
        "Answers to each datagram of a client; then the flow is finished. Default: any number. "
        "UDP.",
        example=1,
        only=DATAGRAMS,
        ge=1,
        le=1_000_000,
    )
    datagrams: int | None = key(
        None,
        "Datagrams of a client that go to one endpoint, before the next is chosen. Default: all. "
        "UDP.",
        example=1,
        only=DATAGRAMS,
        ge=1,
        le=1_000_000,
    )
    broadcast: bool = key(False, 'On "0.0.0.0": accept broadcasts, too. UDP.', only=UDP_ALONE)
    multicast: Groups = key(
        [], 'On "0.0.0.0" or "[::]": multicast groups to join. UDP.', only=UDP_ALONE
    )
    multicast_interface: Interface | None = key(
        None,
        "Where to join them. Default: the one that routing names. UDP.",
        example="eth0",
        only=UDP_ALONE,
    )
    survive: Survive = key(
        "restart",
        'What flows live on through: "restart" a restart or an upgrade of sockpair, "crash" the '
        'end of their process, too, "off" neither.',
    )
    tcp: TcpOptions = key({}, "Socket options. TCP.", only=STREAMS)
    limits: Limits = key({}, "Ceilings of this listener.")

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The names of those its flows may go to, each once; that of who has no route first."""
        return tuple(dict.fromkeys((self.upstream, *self.routes.values())))

    @property
    def idle(self) -> float:
        """Seconds without payload after which a flow ends: as set, else as its RFC advises."""
        idle = self.limits.per_flow.idle
        return IDLE_DEFAULT[self.listen.transport] if idle is None else idle


class Config(Table):
    """The configuration of sockpair."""

    admin: Admin = key({}, "How operators and their programs reach the running proxy.")
    engine: Engine = key({}, "The flow table, and how it is emptied.")
    names: Names = key({}, "How the names of endpoints are resolved.")
    log: Log = key({}, "What is written to stderr.")
    listener: dict[Name, Listener] = key(
        REQUIRED,
        "Listeners by name; the name is a metric label.",
        example={"web": {"listen": "tcp://0.0.0.0:8080", "upstream": "web"}},
        min_length=1,
    )
    upstream: dict[Name, Upstream] = key({}, "Upstreams by name; the name is a metric label.")

    @model_validator(mode="wrap")
    @classmethod
    def _check_whole(cls, document: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report what is wrong between keys together with what is wrong with single ones.

        A plain "after" validator would run only when every key is right by itself, and so hide
        half of the problems until the other half is mended.
        """
        faults = [
            InitErrorDetails(
                type=PydanticCustomError(WHOLE, "{text}", {"text": message}),
                loc=path,
                input=None,
            )
            for path, message in whole.faults(document, Listener)
        ]
        try:
            config = handler(document)
        except ValidationError as exc:
            faults += exc.errors(include_url=False)  # type: ignore[arg-type]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return config

    @property
    def keeps_crashed(self) -> bool:
        """Whether flows of any listener are to outlive their process: so it is not ours."""
        return any(listener.survive == "crash" for listener in self.listener.values())

    def unused_upstreams(self) -> list[str]:
        """Upstreams that no listener forwards to: legal, and rarely meant."""
        used = {name for listener in self.listener.values() for name in listener.upstreams}
        return [name for name in self.upstream if name not in used]
