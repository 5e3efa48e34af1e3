"""What the file says of an upstream: its endpoints, and how flows are shared out among them.

An endpoint may be written short, as its address, or as a table with more keys; either way it
becomes the same object, so nobody else knows of two spellings.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from proxy.config.health import Health
from proxy.config.keys import INTERFACE_KEY, MARK_KEY, PRIORITY_KEY, REQUIRED, Table, key
from proxy.config.packets import Interface, SourcePorts, Sources, UpstreamDscp
from proxy.config.values import (
    ENDPOINT_KIND,
    ENDPOINT_PATTERN,
    Balance,
    EndpointAddress,
    NameFamily,
    OnDown,
    SendProxy,
    Timeout,
    WhenFull,
    as_array,
)
from proxy.core.endpoint import WEIGHT_MAX


class Endpoint(Table):
    """One endpoint of an upstream."""

    address: EndpointAddress = key(REQUIRED, "host:port, or a Unix socket.", example="10.0.0.1:80")
    weight: int = key(1, "Its part of the new flows, beside the others'.", ge=1, le=WEIGHT_MAX)
    flows: int | None = key(
        None, "Flows it may have at once. Default: no ceiling.", example=100, ge=1, le=10_000_000
    )
    backup: bool = key(False, "Take new flows only while no other endpoint can.")

    def __str__(self) -> str:
        return str(self.address)

    @model_validator(mode="wrap")
    @classmethod
    def _read_short(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take an address for the table that names nothing else; its faults are the entry's."""
        if not isinstance(value, dict):
            ENDPOINT_KIND[0].func(value)
            value = {"address": value}
        return handler(value)


class _OrShort:
    """Describes an endpoint in both its spellings."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "pattern": ENDPOINT_PATTERN}, handler(schema)]}


Endpoints: TypeAlias = Annotated[
    tuple[Annotated[Endpoint, _OrShort()], ...], Field(min_length=1), BeforeValidator(as_array)
]


class Ejection(Table):
    """When an endpoint that fails flows gets no new ones for a while."""

    failures: int = key(
        5, "Failures of flows in a row that eject an endpoint; 0 is never.", ge=0, le=1_000_000
    )
    failure_percent: int = key(
        0, "Part of the flows of a window whose failure ejects it; 0 is never.", ge=0, le=100
    )
    volume: int = key(
        20, "Flows in a window, below which their part says nothing.", ge=1, le=1_000_000
    )
    window: Timeout = key("10s", "The window.")
    time: Timeout = key("10s", "How long it is out; doubled if it is ejected again soon.")
    time_max: Timeout = key("5m", "How long at most.")
    most_percent: int = key(50, "Part of the endpoints that is ejected at most.", ge=0, le=100)
    panic_percent: int = key(
        30, "If a smaller part is usable, those that are ejected are used, too.", ge=0, le=100
    )


class Upstream(Table):
    """A named set of endpoints."""

    endpoints: Endpoints = key(
        REQUIRED,
        "Each host:port or a Unix socket, or a table with address and more keys; "
        'or "original" alone, the destination that nft diverted the client from.',
        example=["10.0.0.1:80"],
    )
    family: NameFamily = key(
        "any", 'Which addresses of names are used: "any", or only those of "ipv4" or "ipv6".'
    )
    balance: Balance = key(
        "round_robin",
        "How an endpoint is chosen for a new flow: in turn; the one with the least_flows; the "
        "better of two at random; the first that can; or for each source the same, by rendezvous "
        "(source) or by a table (maglev).",
    )
    on_down: OnDown = key(
        "keep",
        'What becomes of the flows of an endpoint that is down or ejected: "keep" or "close". Next '
        "datagrams go to another one either way.",
    )
    ejection: Ejection = key({}, "When an endpoint gets no new flows for what flows met with.")
    slow_start: Timeout | None = key(
        None,
        "How long an endpoint that comes back, or is new, takes to get its whole weight. "
        "Default: it has it at once.",
        example="30s",
    )
    when_full: WhenFull = key(
        "refuse",
        'What becomes of flows when every endpoint has all the flows it may have: "refuse" or '
        '"wait". Only streams wait.',
    )
    wait: Timeout = key("5s", "How long flows that wait do so, and are then refused.")
    wait_flows: int = key(1000, "How many wait at once; more are refused.", ge=1, le=1_000_000)
    multicast_interface: Interface | None = key(
        None,
        "Where datagrams to multicast and broadcast endpoints leave. Default: as routed.",
        example="eth1",
    )
    multicast_ttl: int = key(
        1, "Hops of datagrams to multicast endpoints; 1 stays on the link.", ge=0, le=255
    )
    source: Sources | None = key(
        None,
        "Addresses to leave from, in turn: one, or an array of them and of ranges. "
        "Default: routing decides.",
        example=["192.0.2.7", "192.0.2.8-192.0.2.15"],
    )
    source_ports: SourcePorts | None = key(
        None, "Ports to leave from. Default: the kernel's.", example="10000-19999"
    )
    send_proxy: SendProxy | None = key(
        None,
        "Begin with a PROXY protocol header that tells the endpoint who the client is. "
        "Default: no header.",
        example="v2",
    )
    send_proxy_crc32c: bool = key(False, "Add a checksum to headers of version 2.")
    mark: int | None = MARK_KEY
    dscp: UpstreamDscp | None = key(
        None,
        'DSCP of packets that are sent: as of a listener, or "copy", what the client\'s first one '
        "had. Default: none.",
        example="copy",
    )
    priority: int | None = PRIORITY_KEY
    interface: Interface | None = INTERFACE_KEY
    health: Health = key({}, "Active checks of its endpoints.")
