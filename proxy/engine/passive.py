"""What flows meet with at their endpoints, told to those who judge them; see ``core.ejection``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from proxy.core.address import format_address
from proxy.core.flow import CloseReason

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.flow import Flow

log = structlog.get_logger()


def missed(endpoint: Endpoint, now: float) -> None:
    """A flow could not be connected, or drew an ICMP error."""
    if endpoint.record is not None:
        _judge(endpoint, endpoint.record.missed(now), now)


def ended(flow: Flow, reason: CloseReason, now: float) -> None:
    """A flow has ended that had an endpoint."""
    endpoint = flow.endpoint
    if endpoint is None or endpoint.record is None:
        return
    if flow.reply.bytes:
        endpoint.record.served()
    elif reason is CloseReason.ENDPOINT_RESET:
        _judge(endpoint, endpoint.record.was_reset(now), now)
    elif flow.transport.is_datagram and reason in UNANSWERED:
        _judge(endpoint, endpoint.record.unanswered(now), now)


UNANSWERED = frozenset({CloseReason.IDLE_TIMEOUT, CloseReason.MAX_DURATION})


def _judge(endpoint: Endpoint, reason: str, now: float) -> None:
    if reason and endpoint.try_eject(reason, now):
        assert endpoint.record is not None
        log.warning(
            "endpoint_ejected",
            upstream=endpoint.counters.upstream,
            endpoint=endpoint.name,
            address=format_address(endpoint.address),
            reason=reason,
            seconds=round(endpoint.record.until - now, 3),
            times=endpoint.record.times,
        )


def returned(endpoint: Endpoint) -> None:
    """The ejection of an endpoint is over."""
    log.info(
        "endpoint_returned",
        upstream=endpoint.counters.upstream,
        endpoint=endpoint.name,
        address=format_address(endpoint.address),
        condition=endpoint.condition.value,
    )
