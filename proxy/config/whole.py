"""What is wrong between the keys of a configuration, each of which may be right by itself.

The checks read the raw document, not the model, because they must speak also when some other part
is wrong: a value they cannot read is passed over here, since its own key reports it.

Which addresses exclude each other is the kernel's decision, for sockets that do not share their
port (by SO_REUSEPORT, or SO_REUSEADDR in UDP): the same address, of course; and a wildcard with
any address of its family on the same port, for then both would be asked for the same packet.
``[::]`` claims the IPv4 side too when it is dual-stack, and only then. Port 0 is never in the way:
the kernel chooses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, Any, Final, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from proxy.config import balancing, identity, origins
from proxy.config.ceilings import ceiling_faults
from proxy.config.health_faults import health_faults
from proxy.config.name_faults import names_faults
from proxy.config.problem import PROBLEMS_MAX, Path, did_you_mean, dotted, shown
from proxy.config.routes import route_faults, routes_of
from proxy.config.unix import UnixEndpoint, unix_faults
from proxy.config.values import (
    ADMIN_HTTP_DEFAULT,
    ADMIN_SOCKET_DEFAULT,
    ORIGINAL,
    ListenAddress,
    endpoint_texts,
    parse_admin_http,
    parse_endpoint,
    parse_group,
    parse_listen,
)
from proxy.core.address import HostPort, Transport

T = TypeVar("T")
Fault: TypeAlias = tuple[Path, str]
Table: TypeAlias = dict[str, Any]

ANY_V4: Final = "0.0.0.0"  # noqa: S104 - compared with, not bound to

ONLY: Final = "x-transport"
"""The mark, in a key's schema, of the transports on whose listeners it has an effect."""


def faults(document: object, listener_model: type[BaseModel]) -> list[Fault]:
    """Check a raw document.

    Args:
        document: as the TOML parser gave it; anything.
        listener_model: the model of a listener, whose keys know their transport.

    """
    tables = _Tables(document)

    def found() -> Iterator[Fault]:
        for name in tables.listeners:
            yield from _listener_faults(name, tables, listener_model)
        yield from _address_faults(tables)
        for name, endpoints in tables.endpoints.items():
            yield from _repeated_endpoints(("upstream", name, "endpoints"), endpoints)
            yield from balancing.upstream_faults(name, tables.upstreams[name])
            yield from origins.upstream_faults(name, tables.upstreams[name])
            yield from identity.upstream_faults(name, tables.upstreams[name])
            yield from health_faults(name, tables.upstreams[name])
        yield from names_faults(tables.names)

    return list(islice(found(), PROBLEMS_MAX + 1))


class _Tables:
    """What can be read of the document, sound or not."""

    def __init__(self, document: object) -> None:
        root = _table(document)
        http = _table(root.get("admin")).get("http", ADMIN_HTTP_DEFAULT)
        self.admin = _read(parse_admin_http, http)
        self.admin_socket = _table(root.get("admin")).get("socket", ADMIN_SOCKET_DEFAULT)
        self.engine = _table(root.get("engine"))
        self.names = _table(root.get("names"))
        self.listeners = {
            name: _table(listener) for name, listener in _table(root.get("listener")).items()
        }
        self.addresses = {
            name: address
            for name, listener in self.listeners.items()
            if (address := _read(parse_listen, listener.get("listen")))
        }
        self.upstreams = {
            name: _table(upstream) for name, upstream in _table(root.get("upstream")).items()
        }
        self.endpoints = {
            name: _endpoints(upstream.get("endpoints")) for name, upstream in self.upstreams.items()
        }


def _listener_faults(
    name: str, tables: _Tables, listener_model: type[BaseModel]
) -> Iterator[Fault]:
    listener, address = tables.listeners[name], tables.addresses.get(name)
    yield from ceiling_faults(name, listener, tables.engine)
    if address is not None:
        yield from _dual_stack_elsewhere(name, listener, address)
        yield from _groups_elsewhere(name, listener, address)
        yield from _foreign_keys(("listener", name), listener, listener_model, address.transport)
    yield from _way_faults(name, listener, address, tables)
    yield from _route_faults(name, listener, address, tables)


def _route_faults(
    name: str, listener: Table, address: ListenAddress | None, tables: _Tables
) -> Iterator[Fault]:
    """Check the routes of a listener, each upstream once, for what is said of no other way."""
    yield from route_faults(name, listener)
    path = ("listener", name, "upstream")
    seen = {str(listener.get("upstream"))}
    told = set(_way_faults(name, listener, address, tables))
    for text, upstream in routes_of(listener).items():
        place = ("listener", name, "routes", text)
        way = {**listener, "upstream": upstream}
        if ORIGINAL in tables.endpoints.get(upstream, ()):
            yield place, "goes to original destinations, which no route can; name endpoints"
        elif upstream not in seen:
            for fault in _way_faults(name, way, address, tables):
                if fault not in told:
                    yield (place, fault[1]) if fault[0] == path else fault
        if upstream in tables.endpoints:  # what is not there is told each time
            seen.add(upstream)


def _way_faults(
    name: str, listener: Table, address: ListenAddress | None, tables: _Tables
) -> Iterator[Fault]:
    """Check a listener beside its upstream, or beside one that it has a route to."""
    yield from _dangling_upstream(name, listener, tables)
    if address is not None:
        yield from _loops(name, listener, address, tables)
        yield from _streams_to_groups(name, listener, address, tables)
        endpoints = tables.endpoints.get(str(listener.get("upstream")), ())
        upstream = tables.upstreams.get(str(listener.get("upstream")), {})
        yield from identity.listener_faults(name, listener, upstream, address.transport)
        yield from unix_faults(name, listener, address.transport, address.host, endpoints)
    upstream = tables.upstreams.get(str(listener.get("upstream")), {})
    yield from origins.listener_faults(name, listener, upstream, address, dual=_is_dual(listener))


def _dangling_upstream(name: str, listener: Table, tables: _Tables) -> Iterator[Fault]:
    upstream = listener.get("upstream")
    if isinstance(upstream, str) and upstream not in tables.endpoints:
        near = did_you_mean(upstream, tables.endpoints)
        remedy = near or "; add an [upstream.NAME] table with its endpoints"
        yield ("listener", name, "upstream"), f"there is no upstream {shown(upstream)}{remedy}"


def _dual_stack_elsewhere(name: str, listener: Table, address: ListenAddress) -> Iterator[Fault]:
    if (
        _is_dual(listener)
        and not address.transport.is_unix
        and not (address.is_ipv6 and address.is_wildcard)
    ):
        expected = address._replace(host="::")
        yield ("listener", name, "dual_stack"), f'needs listen = "{expected}", found "{address}"'


def _groups_elsewhere(name: str, listener: Table, address: ListenAddress) -> Iterator[Fault]:
    """Broadcast and multicast where the kernel would not deliver them."""
    if address.transport is not Transport.UDP:
        return  # which is said of the key itself
    path = ("listener", name)
    groups = listener.get("multicast")
    hosts = [_read(parse_group, item) for item in groups] if isinstance(groups, list) else []
    if listener.get("broadcast") is True and address.host != ANY_V4:
        expected = address._replace(host=ANY_V4)
        yield (*path, "broadcast"), f'needs listen = "{expected}", found "{address}"'
    for index, host in enumerate(hosts):
        expected = address._replace(host="::" if host and ":" in host else ANY_V4)
        if host is not None and address.host != expected.host:
            message = f'"{host}" needs listen = "{expected}", found "{address}"'
            yield (*path, "multicast", index), message


def _foreign_keys(
    path: Path, table: Table, model: type[BaseModel], transport: Transport
) -> Iterator[Fault]:
    """Keys that were set and have no effect on a listener of this transport."""
    for name, field in model.model_fields.items():
        if name not in table:
            continue
        inner = submodel(field.annotation)
        if not has_effect(field, transport):
            where = " and ".join(_only(field))
            message = f"has no effect on a {transport} listener, only on {where}; remove it"
            yield (*path, name), message
        elif inner is not None:
            yield from _foreign_keys((*path, name), _table(table[name]), inner, transport)


def submodel(annotation: object) -> type[BaseModel] | None:
    """The model of a key that holds a table; nothing for other keys."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def has_effect(field: FieldInfo, transport: Transport) -> bool:
    """Whether a key does anything on a listener of this transport."""
    only = _only(field)
    return not only or transport.value in only


def _only(field: FieldInfo) -> list[str]:
    extra = field.json_schema_extra
    only = extra.get(ONLY) if isinstance(extra, dict) else None
    return [str(word) for word in only] if isinstance(only, list) else []


def _address_faults(tables: _Tables) -> Iterator[Fault]:
    claims = _Claims()
    if tables.admin is not None:
        host = "127.0.0.1" if tables.admin.host == "localhost" else tables.admin.host
        claims.add("admin.http", ListenAddress(Transport.TCP, host, tables.admin.port), False)
    if isinstance(tables.admin_socket, str):
        claims.add("admin.socket", ListenAddress(Transport.UNIX, tables.admin_socket, 0), False)
    for name, address in tables.addresses.items():
        other = claims.add(dotted(("listener", name)), address, _is_dual(tables.listeners[name]))
        if other:
            yield (
                ("listener", name, "listen"),
                f'"{address}" is already claimed by {other}; choose another port or address',
            )


class _Claims:
    """Who has which address; every question is a look-up, however many listeners there are."""

    def __init__(self) -> None:
        self._exact: dict[tuple[Transport, int, str], str] = {}
        self._wildcard: dict[tuple[Transport, int, int], str] = {}  # by IP version
        self._any: dict[tuple[Transport, int, int], str] = {}

    def add(self, owner: str, address: ListenAddress, is_dual: bool) -> str | None:
        """Claim an address; return who stands in the way, if anybody does."""
        transport, host, port = address
        if transport.is_unix:
            return self._add_name(owner, transport, host)
        if port == 0:
            return None
        sides = [(transport, port, version) for version in _versions(address, is_dual)]
        if address.is_wildcard:
            rivals = [self._any.get(side) for side in sides]
        else:
            rivals = [self._exact.get((transport, port, host)), self._wildcard.get(sides[0])]
        self._exact.setdefault((transport, port, host), owner)
        for side in sides:
            self._any.setdefault(side, owner)
            if address.is_wildcard:
                self._wildcard.setdefault(side, owner)
        return next(filter(None, rivals), None)

    def _add_name(self, owner: str, transport: Transport, name: str) -> str | None:
        """Claim the name of a Unix socket; abstract ones are apart by transport: unix(7)."""
        key = transport if name.startswith("@") else Transport.UNIX, 0, name
        rival = self._exact.setdefault(key, owner)
        return None if rival == owner else rival


def _repeated_endpoints(path: Path, endpoints: list[HostPort | None]) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, endpoint in enumerate(endpoints):
        if endpoint is None:
            continue
        same = str(endpoint) if isinstance(endpoint, UnixEndpoint) else str(endpoint).lower()
        if same in seen:
            yield (*path, index), f'"{endpoint}" is already in the list; remove it'
        seen.add(same)


def _loops(name: str, listener: Table, address: ListenAddress, tables: _Tables) -> Iterator[Fault]:
    upstream = str(listener.get("upstream", ""))
    for index, endpoint in enumerate(tables.endpoints.get(upstream, ())):
        if endpoint and _reaches(endpoint, address, _is_dual(listener)):
            itself = f'listener {shown(name)} itself ("{address}")'
            path = ("upstream", upstream, "endpoints", index)
            yield path, f'"{endpoint}" is {itself}: an endless loop; name another endpoint'


def _streams_to_groups(
    name: str, listener: Table, address: ListenAddress, tables: _Tables
) -> Iterator[Fault]:
    if address.transport is not Transport.TCP:
        return
    upstream = str(listener.get("upstream", ""))
    for index, endpoint in enumerate(tables.endpoints.get(upstream, ())):
        parsed = _read(ipaddress.ip_address, endpoint.host) if endpoint else None
        if parsed is not None and (parsed.is_multicast or str(parsed) == "255.255.255.255"):
            path = ("upstream", upstream, "endpoints", index)
            yield path, f'"{endpoint}" is many hosts: tcp listener {shown(name)} cannot reach it'


def _reaches(endpoint: HostPort, address: ListenAddress, is_dual: bool) -> bool:
    """Whether connecting to the endpoint surely arrives at the address."""
    if endpoint.port != address.port:
        return False
    hosts = ("127.0.0.1", "::1") if endpoint.host == "localhost" else (endpoint.host,)
    if address.is_wildcard:
        return any(_is_loopback(host, _versions(address, is_dual)) for host in hosts)
    return address.host in hosts


def _is_loopback(host: str, versions: tuple[int, ...]) -> bool:
    parsed = _read(ipaddress.ip_address, host)
    return parsed is not None and parsed.is_loopback and parsed.version in versions


def _versions(address: ListenAddress, is_dual: bool) -> tuple[int, ...]:
    """The IP versions a socket at this address accepts."""
    if not address.is_ipv6:
        return (4,)
    return (6, 4) if is_dual and address.is_wildcard else (6,)


def _is_dual(listener: Table) -> bool:
    return listener.get("dual_stack") is True


def _endpoints(value: object) -> list[HostPort | None]:
    return [_read(parse_endpoint, item) for item in endpoint_texts(value)]


def _table(value: object) -> Table:
    return value if isinstance(value, dict) else {}


def _read(parse: Callable[[str], T], value: object) -> T | None:
    """Read one value, or nothing when it is wrong, which its own key reports."""
    if not isinstance(value, str):
        return None
    try:
        return parse(value)
    except ValueError:
        return None
