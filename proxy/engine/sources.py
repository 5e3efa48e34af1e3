"""The source that a flow's client belongs to: a prefix of addresses, or a user of this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.unix import UNKNOWN_SOURCE, Credentials

if TYPE_CHECKING:
    from proxy.core.admission import AdmissionLimits
    from proxy.core.flow import Flow
    from proxy.core.longest import LongestMatch
    from proxy.core.sources import SourceKey


def source_key_of(flow: Flow, limits: AdmissionLimits) -> SourceKey:
    """The key of the source that a flow's client belongs to, as these limits see it."""
    if flow.transport.is_unix:
        return user_key(flow.credentials)
    return limits.key(flow.client_remote[0])


def weight_of(flow: Flow, weights: LongestMatch[int]) -> int:
    """The weight of the source that a flow's client belongs to, beside others."""
    if flow.transport.is_unix:
        return 1
    return weights.find(flow.client_remote[0]) or 1


def user_key(credentials: Credentials | None) -> SourceKey:
    """The source of a Unix client: its user, whatever it calls itself."""
    return UNKNOWN_SOURCE if credentials is None else credentials.source
