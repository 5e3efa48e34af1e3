from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.counters import DOWN
from proxy.core.flow import CloseReason
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


def test_a_failed_endpoint_is_down_for_a_while_or_until_it_answers() -> None:
    (endpoint,) = upstream_of(1).endpoints
    counters = endpoint.counters
    assert counters.up(0.0)
    counters.attempt_failed(CloseReason.CONNECT_REFUSED, 100.0)
    assert not counters.up(100.0 + DOWN - 0.1)
    assert counters.up(100.0 + DOWN)
    counters.attempt_failed(CloseReason.CONNECT_REFUSED, 200.0)
    counters.answered()
    assert counters.snapshot(200.0)["up"]
    assert counters.snapshot(200.0)["failures"]["connect_refused"] == 2
