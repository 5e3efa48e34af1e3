from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.upstream import Endpoint, Upstream


def upstream_of(count: int) -> Upstream:
    return Upstream("web", [Endpoint("web", f"e{n}", ("192.0.2.1", n + 1)) for n in range(count)])


@given(st.integers(1, 9), st.integers(0, 50))
def test_round_robin_shares_are_even(count: int, picks: int) -> None:
    upstream = upstream_of(count)
    taken = Counter(upstream.pick() for _ in range(picks))
    shares = [taken[endpoint] for endpoint in upstream.endpoints]
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 6), st.data())
def test_tried_endpoints_are_left_out(count: int, data: st.DataObject) -> None:
    upstream = upstream_of(count)
    tried = data.draw(st.sets(st.sampled_from(upstream.endpoints)))
    picked = upstream.pick(tried)
    assert (picked is None) == (len(tried) == count)
    assert picked not in tried


def test_no_endpoint_at_all() -> None:
    assert upstream_of(0).pick() is None
