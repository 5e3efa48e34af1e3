"""Endpoints for the tests of pickers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from proxy.core.balance.picker import Picker
from proxy.core.endpoint import Endpoint


def endpoints_of(weights: Sequence[int]) -> list[Endpoint]:
    """So many endpoints with these weights, called e0, e1 and so on."""
    endpoints = [Endpoint("web", f"e{n}", ("192.0.2.1", n + 1)) for n in range(len(weights))]
    for endpoint, weight in zip(endpoints, weights, strict=True):
        endpoint.become(weight, backup=False)
    return endpoints


def picks(
    picker: Picker, count: int, tried: Collection[Endpoint] = (), source: str = ""
) -> list[Endpoint | None]:
    """What it picks so many times."""
    return [picker.pick(tried, source, 0.0) for _ in range(count)]
