"""Endpoints that DNS lists itself, with their ports: ``srv://_http._tcp.example.org`` (SRV)."""

from __future__ import annotations

from typing import Final

from proxy.core.address import HostPort, parse_host_port

SERVICE: Final = "srv://"
SERVICE_PATTERN: Final = "srv://[^/:]+"


class ServiceEndpoint(HostPort):
    """All endpoints of a service; its host is the name that has the SRV records, its port is 0."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{SERVICE}{self.host}"


def parse_service(text: str) -> ServiceEndpoint | None:
    """Read ``"srv://_http._tcp.example.org"``; None if it does not begin like that.

    Raises:
        ValueError: what follows is no name, or has a port.

    """
    if not text.startswith(SERVICE):
        return None
    name = text.removeprefix(SERVICE)
    if ":" in name:
        raise ValueError(f'"{text}" has a port: remove it, since SRV records have their own')
    try:
        found = parse_host_port(f"{name}:1")
    except ValueError:
        found = None
    if found is None or found.is_literal:
        raise ValueError(f'"{text}" names no service: expected "{SERVICE}_http._tcp.example.org"')
    return ServiceEndpoint(found.host, 0)
