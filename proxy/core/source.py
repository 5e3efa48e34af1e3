"""Where flows to an upstream leave from: addresses, and perhaps ports, taken in turn.

The turn goes round the addresses first and then to the next port, so that every address carries
the same number of flows, and a port that has just been used is the last to be used again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

Source: TypeAlias = tuple[str, int]
"""Host and port; port 0 lets the kernel choose."""

TRIES_MAX: Final = 64
"""Sources that are tried for one attempt; each costs a few system calls, a fifth of a millisecond
for all. Those that are taken are not found by looking longer, but by waiting for flows to end."""

ANY_PORT: Final = range(1)
ANY_HOST: Final = ("0.0.0.0", "::")  # noqa: S104 - the source is left to routing


class SourcePool:
    """The sources of an upstream, for both IP versions. All its listeners share one.

    Args:
        hosts: literal addresses; none leaves them to routing.
        ports: the ports to leave from; ``ANY_PORT`` leaves them to the kernel.

    """

    __slots__ = ("_v4", "_v6", "ports")

    def __init__(self, hosts: Sequence[str], ports: range = ANY_PORT) -> None:
        chosen = hosts or ANY_HOST
        self.ports = ports
        self._v4 = _Turns([host for host in chosen if ":" not in host], ports)
        self._v6 = _Turns([host for host in chosen if ":" in host], ports)

    @property
    def hosts(self) -> Sequence[str]:
        """The addresses of both versions."""
        return (*self._v4.hosts, *self._v6.hosts)

    def candidates(self, remote_host: str) -> Iterator[Source]:
        """The sources to try in turn to reach this host, at most ``TRIES_MAX``.

        There are none if the pool has no address of the host's version.
        """
        return (self._v6 if ":" in remote_host else self._v4).take()


class _Turns:
    """The addresses of one IP version, and whose turn it is."""

    __slots__ = ("_next", "hosts", "ports")

    def __init__(self, hosts: Sequence[str], ports: range) -> None:
        self.hosts = tuple(hosts)
        self.ports = ports
        self._next = 0

    def take(self) -> Iterator[Source]:
        hosts, ports = self.hosts, self.ports
        every = len(hosts) * len(ports)
        for _ in range(min(TRIES_MAX, every)):
            port, host = divmod(self._next, len(hosts))
            self._next = (self._next + 1) % every
            yield hosts[host], ports[port]
