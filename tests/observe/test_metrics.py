"""The catalogue, its rendering, and Prometheus' own opinion of it."""

from __future__ import annotations

import pytest
import trio
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.core.flow import CloseReason, CloseSide, Drop, Refusal
from proxy.observe.catalogue import CATALOGUE
from proxy.observe.metrics import render
from proxy.observe.samples import Reading
from tests.e2e.program import peer
from tests.observe.fake_relay import WALL, FakeRelay, FakeSteward

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


async def scrape(relay: FakeRelay, accept: str = "") -> tuple[str, str]:
    counters, status = await relay.counters(), await relay.status()
    reading = Reading(
        counters,
        status,
        0,
        FakeSteward().last_reload(),
        WALL,
        FakeSteward().names(),
        FakeSteward().checks(),
    )
    content_type, slices = render(reading, accept)
    return content_type, b"".join(slices).decode()


def samples(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def test_render_emits_exactly_the_catalogue() -> None:
    _, text = await scrape(FakeRelay())
    written = [line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE")]
    types = {"info": "gauge"}
    assert written == [[entry.name, types.get(entry.type, entry.type)] for entry in CATALOGUE]


async def test_samples_carry_exactly_the_labels_of_the_catalogue() -> None:
    _, text = await scrape(FakeRelay())
    labels = {entry.name: set(entry.labels) for entry in CATALOGUE}
    for family in parse_text(text):
        for sample in family.samples:
            name = sample.name
            for suffix in ("_bucket", "_count", "_sum") if family.type == "histogram" else ():
                name = name.removesuffix(suffix)
            assert set(sample.labels) - {"le"} == labels[name], sample


async def test_both_formats_tell_the_same() -> None:
    relay = FakeRelay()
    relay.open_tcp(original=5)
    _, text = await scrape(relay)
    content_type, openmetrics = await scrape(relay, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert openmetrics.count("# EOF\n") == 1
    assert openmetrics.endswith("# EOF\n")
    assert len([*parse_openmetrics(openmetrics)]) == len([*parse_text(text)])
    stable = {key for key in samples(text) if key.startswith("sockpair")}
    assert stable == {key for key in samples(openmetrics) if key.startswith("sockpair")}


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain;version=0.0.4", "application/openmetrics-text;version=x", ","]
)
async def test_any_accept_header_gets_text(accept: str) -> None:
    content_type, text = await scrape(FakeRelay(), accept)
    assert content_type.startswith("text/plain") or "openmetrics" in accept
    assert "sockpair_flows{" in text


async def test_nothing_has_a_created_twin() -> None:
    for accept in ("", OPENMETRICS):
        assert "_created" not in (await scrape(FakeRelay(), accept))[1]


async def test_every_known_label_set_starts_at_zero() -> None:
    _, text = await scrape(FakeRelay())
    values = samples(text)
    for reason in CloseReason:
        assert values[f'sockpair_flows_closed_total{{listener="web",reason="{reason}"}}'] == 0
    for refusal in Refusal:
        assert values[f'sockpair_flows_refused_total{{listener="dns",reason="{refusal}"}}'] == 0
    for drop in Drop:
        assert values[f'sockpair_datagrams_dropped_total{{listener="dns",reason="{drop}"}}'] == 0


async def test_datagram_metrics_are_of_udp_listeners_alone() -> None:
    _, text = await scrape(FakeRelay())
    named = [line for line in text.splitlines() if "datagrams" in line and "{" in line]
    assert named
    assert all('listener="dns"' in line for line in named)


async def test_directions_are_told_by_leg() -> None:
    relay = FakeRelay()
    relay.web.original.received = 100
    relay.web.original.buffered = 30
    relay.web.reply.received = 7
    values = samples((await scrape(relay))[1])
    assert values['sockpair_client_received_bytes_total{listener="web"}'] == 100
    assert values['sockpair_endpoint_sent_bytes_total{listener="web"}'] == 70
    assert values['sockpair_endpoint_received_bytes_total{listener="web"}'] == 7
    assert values['sockpair_client_sent_bytes_total{listener="web"}'] == 7
    assert values['sockpair_buffered_bytes{direction="original",listener="web"}'] == 30


async def test_a_flow_leaves_its_trace() -> None:
    relay = FakeRelay()
    flow = relay.open_tcp()
    live = 'sockpair_flows{listener="web",state="established",transport="tcp"}'
    assert samples((await scrape(relay))[1])[live] == 1
    relay.end(flow, CloseReason.ENDPOINT_RESET, CloseSide.ENDPOINT)
    values = samples((await scrape(relay))[1])
    assert values[live] == 0
    assert values['sockpair_flows_closed_total{listener="web",reason="endpoint_reset"}'] == 1
    buckets = "sockpair_flow_duration_seconds_bucket"
    assert values[f'{buckets}{{le="1.0",listener="web"}}'] == 0
    assert values[f'{buckets}{{le="10.0",listener="web"}}'] == 1
    assert values[f'{buckets}{{le="+Inf",listener="web"}}'] == 1
    assert values['sockpair_flow_duration_seconds_sum{listener="web"}'] == 2.5


async def test_every_histogram_names_a_flow_of_each_bucket() -> None:
    relay = FakeRelay()
    flow = relay.open_tcp(original=100, reply=5_000)
    relay.end(flow)
    _, text = await scrape(relay, OPENMETRICS)
    found = {
        (sample.name, sample.labels.get("direction"), sample.labels["le"]): sample.exemplar
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar
    }
    assert {key: exemplar.value for key, exemplar in found.items()} == {
        ("sockpair_flow_duration_seconds_bucket", None, "10.0"): 2.5,
        ("sockpair_flow_bytes_bucket", "original", "512.0"): 100,
        ("sockpair_flow_bytes_bucket", "reply", "32768.0"): 5_000,
    }
    for exemplar in found.values():
        assert exemplar.labels == {"flow": str(flow.id)}
        assert float(exemplar.timestamp) == WALL + 12.5


async def test_plain_text_has_no_exemplars() -> None:
    relay = FakeRelay()
    relay.end(relay.open_tcp())
    _, text = await scrape(relay)
    assert "# {" not in text


async def test_names_that_need_escaping_survive() -> None:
    relay = FakeRelay()
    relay.web.listener = 'we"b\\\n'
    _, text = await scrape(relay)
    opened = next(f for f in parse_text(text) if f.name == "sockpair_flows_opened")
    assert opened.samples[0].labels == {"listener": 'we"b\\\n'}


@pytest.mark.peers
async def test_promtool_has_no_complaint() -> None:
    _, text = await scrape(FakeRelay())
    done = await trio.run_process(
        [peer("promtool"), "check", "metrics"],
        stdin=text.encode(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_a_listener_with_two_transports_is_one_series() -> None:
    relay = FakeRelay()
    relay.dns.listener = "web"
    relay.open_tcp(original=5)
    relay.open_udp()
    _, text = await scrape(relay)
    found = samples(text)
    assert len(found) == len(text.splitlines()) - text.count("# ")
    assert found['sockpair_flows_opened_total{listener="web"}'] == 2
    states = [found[name] for name in found if name.startswith("sockpair_flows{")]
    assert sum(states) == 2


async def test_what_is_known_of_the_addresses_of_an_endpoint() -> None:
    relay = FakeRelay()
    _, text = await scrape(relay)
    labels = '{endpoint="10.0.0.1:80",upstream="web"}'
    kinds = ("flows_limit", "weight", "condition_timestamp_seconds")
    first = {kind: samples(text).get(f"sockpair_endpoint_{kind}{labels}") for kind in kinds}
    assert first == {"flows_limit": None, "weight": 0.0, "condition_timestamp_seconds": 0.0}
    relay.addresses = [
        {
            "address": address,
            "condition": "up",
            "since": since,
            "reason": "",
            "weight": weight,
            "share": share,
            "backup": False,
            "flows": 3,
            "ceiling": 7,
            "ejections": 0,
            "seconds_left": None,
        }
        for address, since, weight, share in (
            ("10.0.0.1:80", None, 4, 25),
            ("10.0.0.2:80", WALL, 2, 100),
        )
    ]
    _, text = await scrape(relay)
    then = {kind: samples(text)[f"sockpair_endpoint_{kind}{labels}"] for kind in kinds}
    assert then == {"flows_limit": 14.0, "weight": 3.0, "condition_timestamp_seconds": WALL}
    assert samples(text)[f"sockpair_check_last_timestamp_seconds{labels}"] == WALL + 5
