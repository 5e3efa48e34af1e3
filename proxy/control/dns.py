"""The resolver: a name's addresses from /etc/hosts, and else from DNS, without ever blocking.

DNS is asked by dnspython on Trio. Servers, search domains and ``ndots`` are those of
/etc/resolv.conf, unless the configuration names servers; both files are read again when they have
changed, in a thread, since they may be large, or on a disk that is slow. Other sources that the
C library may know (``nsswitch.conf``: mDNS, LDAP) are not asked.

The families of a name are asked at the same time, and so are the targets of a service; an answer
that does not fit a datagram comes over TCP. ``ASKED_AT_ONCE`` bounds the questions under way, and
the configured timeout each of them. Nothing is kept from one look-up to the next: what an answer is
worth, and how long, is decided in ``core.names``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.resolver
import trio

from proxy.core.hosts import HOSTS_MAX, hosts_of, parse_hosts
from proxy.core.names import TARGETS_MAX, Answer, Failure, Target
from proxy.core.printable import printable

if TYPE_CHECKING:
    from proxy.core.address import Address, HostPort
    from proxy.core.names import Parts

HOSTS_FILE: Final = Path("/etc/hosts")
RESOLV_FILE: Final = Path("/etc/resolv.conf")
RESOLV_MAX: Final = 64 * 1024
"""Bytes of it that are read; it has some lines."""

HOSTS_TTL: Final = 10.0
"""Seconds until a name from the file is looked up again; that costs one stat(2)."""

ASKED_AT_ONCE: Final = 32
"""Questions under way; more wait. A start with thousands of names must not flood the servers."""

FAMILIES: Final = ("A", "AAAA")

SAID_MAX: Final = 100
"""Characters of what a server said that are shown."""

Content = TypeVar("Content")


class Asking(NamedTuple):
    """How DNS is asked.

    Attributes:
        servers: these; empty takes those of /etc/resolv.conf.
        timeout: seconds for one question, all servers and search domains together.

    """

    servers: tuple[HostPort, ...] = ()
    timeout: float = 5.0


class Resolver:
    """Looks names up.

    Args:
        hosts: the file that is asked first.
        resolv: the file that names the servers.

    """

    def __init__(self, hosts: Path = HOSTS_FILE, resolv: Path = RESOLV_FILE) -> None:
        self._hosts = _WatchedFile(hosts, HOSTS_MAX, parse_hosts)
        self._resolv = _WatchedFile(resolv, RESOLV_MAX, str)
        self._turns = trio.CapacityLimiter(ASKED_AT_ONCE)

    async def host(self, name: str, asking: Asking) -> Parts | Failure:
        """Look up the addresses of a host: a part for each family."""
        hosts = await self._hosts.read()
        local = hosts_of(name, hosts or {})
        if local:
            return {"hosts": Answer(_targets(local), HOSTS_TTL)}
        dns_resolver = await self._resolver(asking)
        if isinstance(dns_resolver, Failure):
            return dns_resolver
        parts: dict[Hashable, Answer | Failure] = {}

        async def ask(kind: str) -> None:
            found = await self._ask(dns_resolver, name, kind)
            if isinstance(found, Failure):
                parts[kind] = found
            else:
                parts[kind] = Answer(_targets(each.to_text() for each in found), _ttl(found))

        async with trio.open_nursery() as nursery:
            for kind in FAMILIES:
                nursery.start_soon(ask, kind)
        return parts

    async def service(self, name: str, asking: Asking) -> Parts | Failure:
        """Look up a service (SRV, RFC 2782), and then its targets: a part for each and family."""
        dns_resolver = await self._resolver(asking)
        if isinstance(dns_resolver, Failure):
            return dns_resolver
        found = await self._ask(dns_resolver, name, "SRV")
        if isinstance(found, Failure):
            return found
        records = _services(found)
        parts: dict[Hashable, Answer | Failure] = {}

        async def follow(record: _Service) -> None:
            hosts = await self.host(record.target, asking)
            for kind, part in ({"": hosts} if isinstance(hosts, Failure) else hosts).items():
                key = (record.target, record.port, kind)
                parts[key] = _served(part, record, _ttl(found))

        async with trio.open_nursery() as nursery:
            for record in records:
                nursery.start_soon(follow, record)
        return parts or Failure(f'the service "{name}" is not offered', final=True)

    async def _ask(
        self, dns_resolver: dns.asyncresolver.Resolver, name: str, kind: str
    ) -> dns.resolver.Answer | Failure:
        async with self._turns:
            try:
                return await dns_resolver.resolve(
                    name,
                    kind,
                    search=True,
                    raise_on_no_answer=False,
                    backend=dns.asyncbackend.get_backend("trio"),
                )
            except dns.exception.DNSException as error:
                return _failure(error, dns_resolver, kind)

    async def _resolver(self, asking: Asking) -> dns.asyncresolver.Resolver | Failure:
        """Who asks the servers in force."""
        made = dns.asyncresolver.Resolver(configure=False)
        text = await self._resolv.read()
        try:
            _configure(made, text or "")
            if asking.servers:
                made.nameservers = [
                    dns.nameserver.Do53Nameserver(each.host, each.port) for each in asking.servers
                ]
        except (dns.exception.DNSException, ValueError) as error:
            return Failure(f"{self._resolv.path}: {error}")
        if not made.nameservers:
            return Failure(f"{self._resolv.path} names no server")
        made.lifetime = asking.timeout
        # Whatever the file says, each server has its turn, and the first a second one.
        made.timeout = min(made.timeout, asking.timeout / (len(made.nameservers) + 1))
        return made


class _WatchedFile(Generic[Content]):
    """A file that is read again when it has changed; None while it cannot be read."""

    def __init__(self, path: Path, most: int, parse: Callable[[str], Content]) -> None:
        self.path = path
        self._most = most
        self._parse = parse
        self._seen: tuple[int, ...] = ()
        self._content: Content | None = None
        self._turn = trio.Lock()

    async def read(self) -> Content | None:
        async with self._turn:
            return await trio.to_thread.run_sync(self._read)

    def _read(self) -> Content | None:
        try:
            status = self.path.stat()
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                with self.path.open(encoding="utf-8", errors="replace") as file:
                    self._content = self._parse(file.read(self._most))
                self._seen = seen
        except OSError:
            self._seen, self._content = (), None
        return self._content


class _Service(NamedTuple):
    """One SRV record."""

    target: str
    port: int
    weight: int
    priority: int


def _configure(made: dns.asyncresolver.Resolver, text: str) -> None:
    """Take what resolv.conf says, which may name no server."""
    with suppress(dns.resolver.NoResolverConfiguration):
        made.read_resolv_conf(StringIO(text))


def _failure(
    error: dns.exception.DNSException, asked: dns.asyncresolver.Resolver, kind: str
) -> Failure:
    """What went wrong, in a few words for people: of which records, where others may be well."""
    servers = ", ".join(map(_server, asked.nameservers))
    match error:
        case dns.resolver.NXDOMAIN():
            return Failure("there is no such name", final=True)
        case dns.exception.Timeout():
            return Failure(f"no answer within {asked.lifetime:g} s from {servers} ({kind})")
        case dns.resolver.NoNameservers():
            return Failure(f"{_last_error(error) or f'no server answers: {servers}'} ({kind})")
    return Failure(f"{str(error) or type(error).__name__} ({kind})")


def _server(asked: str | dns.nameserver.Nameserver) -> str:
    return str(asked).removeprefix("Do53:").replace("@", ":")


def _last_error(error: dns.resolver.NoNameservers) -> str:
    """What the server said that was asked last."""
    errors = error.kwargs.get("errors") or [("", False, 0, "", None)]
    server, _, _, said, _ = errors[-1]
    return f"{_server(server)} says: {printable(str(said))[:SAID_MAX]}" if said else ""


def _ttl(found: dns.resolver.Answer) -> float:
    """Seconds that an answer holds: the least of the chain, or of its absence (RFC 2308)."""
    return float(found.chaining_result.minimum_ttl)


def _targets(hosts: Iterable[str], port: int = 0) -> tuple[Target, ...]:
    return tuple(Target(_address(host, port)) for host in hosts if _is_usable(host))


def _address(host: str, port: int) -> Address:
    return (host, port, 0, 0) if ":" in host else (host, port)


def _is_usable(host: str) -> bool:
    """Whether one can connect to an address wherever it was found.

    Lists of names to block say 0.0.0.0; a link-local address means nothing without its interface;
    and IPv4 in IPv6 has an A record.
    """
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return not (address.is_unspecified or address.is_link_local or address.ipv4_mapped)
    return not address.is_unspecified


def _services(found: dns.resolver.Answer) -> list[_Service]:
    """The records of an answer, those that matter most first; the target "." offers nothing."""
    records = [
        _Service(each.target.to_text(), each.port, each.weight, each.priority)
        for each in found
        if each.port and each.target != dns.name.root
    ]
    return sorted(records, key=lambda each: (each.priority, each))[:TARGETS_MAX]


def _served(part: Answer | Failure, record: _Service, ttl: float) -> Answer | Failure:
    """The addresses of a target as those of its service."""
    if isinstance(part, Failure):
        return part
    targets = (
        Target(_address(each.address[0], record.port), record.weight, record.priority)
        for each in part.targets
    )
    return Answer(tuple(targets), min(ttl, part.ttl))
