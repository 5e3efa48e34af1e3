"""What the file says of names: who is asked for their addresses, and how often."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, TypeAlias

from pydantic import BeforeValidator

from proxy.config.keys import Table, key
from proxy.config.name_faults import TTL_MAX_DEFAULT, TTL_MIN_DEFAULT
from proxy.config.values import Timeout, as_array, written
from proxy.core.address import HostPort, parse_host_port

DNS_PORT: Final = 53

SERVERS_MAX: Final = 8
"""Servers; each has its turn within one timeout."""


def parse_name_server(text: str) -> HostPort:
    """Read ``"10.0.0.53"``, ``"10.0.0.53:5353"``, ``"2001:db8::53"`` or ``"[2001:db8::53]:5353"``.

    Raises:
        ValueError: it is no address; a name would have to be resolved first.

    """
    try:
        return HostPort(str(ipaddress.ip_address(text.strip("[]"))), DNS_PORT)
    except ValueError:
        pass
    try:
        server = parse_host_port(text)
    except ValueError:
        server = None
    if server is None or not server.is_literal:
        raise ValueError(f'"{text}" is no DNS server: expected an IP address, such as "10.0.0.53"')
    return HostPort(str(ipaddress.ip_address(server.host)), server.port)


NameServer: TypeAlias = Annotated[
    HostPort, *written(parse_name_server, 'text such as "10.0.0.53"', minLength=1)
]

NameServers: TypeAlias = Annotated[tuple[NameServer, ...], BeforeValidator(as_array)]


class Names(Table):
    """How the names of endpoints are resolved."""

    servers: NameServers = key(
        [],
        "DNS servers to ask, each an IP address, with a port if it is not 53. "
        "Default: those of /etc/resolv.conf.",
        max_length=SERVERS_MAX,
    )
    timeout: Timeout = key("5s", "How long one look-up may take, all servers together.")
    ttl_min: Timeout = key(
        TTL_MIN_DEFAULT, "Look a name up again not sooner than that, whatever its TTL."
    )
    ttl_max: Timeout = key(
        TTL_MAX_DEFAULT, "Look a name up again not later than that, whatever its TTL."
    )
