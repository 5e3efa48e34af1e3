"""The flow table as metrics: what the API shows, capped, in both formats."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from proxy.core.flow import CloseReason, CloseSide
from proxy.observe.flow_metrics import FLOW_CATALOGUE, OMITTED, SILENT, read_flows
from tests.e2e.program import peer
from tests.observe.fake_relay import FakeRelay


@dataclass(frozen=True)
class Scrape:
    text: str
    samples: list[Sample]

    def of(self, name: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.name == name]


async def scrape(relay: FakeRelay, most: int = 1000, *, openmetrics: bool = False) -> Scrape:
    pieces = await read_flows(relay, most, openmetrics=openmetrics)
    text = b"".join(pieces).decode()
    parse = parse_openmetrics if openmetrics else parse_text
    return Scrape(text, [sample for family in parse(text) for sample in family.samples])


@pytest.fixture
def relay() -> FakeRelay:
    relay = FakeRelay()
    for size in (10, 3000, 200):
        relay.open_tcp(original=size, reply=2 * size)
    relay.open_udp()
    return relay


@pytest.mark.parametrize("openmetrics", [False, True])
async def test_the_largest_flows_come_first_and_the_rest_is_counted(
    relay: FakeRelay, openmetrics: bool
) -> None:
    found = await scrape(relay, 2, openmetrics=openmetrics)
    assert [sample.labels["flow"] for sample in found.of("sockpair_flow_info")] == ["2", "3"]
    assert [sample.value for sample in found.of(OMITTED.name)] == [2]
    originals = found.of("sockpair_flow_original_bytes_total")
    assert [sample.value for sample in originals] == [3000, 200]
    replies = found.of("sockpair_flow_reply_bytes_total")
    assert [sample.value for sample in replies] == [6000, 400]


async def test_a_flow_is_told_by_both_its_pairs(relay: FakeRelay) -> None:
    found = await scrape(relay)
    info = found.of("sockpair_flow_info")
    assert info[0].labels == {
        "flow": "2",
        "listener": "web",
        "transport": "tcp",
        "client": "192.0.2.7:51000",
        "client_local": "192.0.2.1:8080",
        "endpoint_local": "10.0.0.9:40002",
        "endpoint": "10.0.0.1:80",
        "state": "established",
    }
    assert info[-1].labels["endpoint"] == ""  # it has none yet
    opened = found.of("sockpair_flow_opened_timestamp_seconds")
    assert {sample.value for sample in opened} == {1_700_000_010.0}


@pytest.mark.parametrize("openmetrics", [False, True])
async def test_exactly_the_catalogue_is_written(relay: FakeRelay, openmetrics: bool) -> None:
    found = await scrape(relay, openmetrics=openmetrics)
    assert {sample.name for sample in found.samples} == {
        OMITTED.name,
        SILENT.name,
        *(metric.name for metric in FLOW_CATALOGUE),
    }
    for metric in FLOW_CATALOGUE:
        assert len(found.of(metric.name)) == 4
        assert {tuple(sorted(sample.labels)) for sample in found.of(metric.name)} == {
            tuple(sorted(metric.labels))
        }
    assert found.text.endswith("# EOF\n") == openmetrics


async def test_hostile_names_are_escaped(relay: FakeRelay) -> None:
    relay.web.listener = 'a"b\\c\nd'
    relay.open_tcp(original=9999)
    found = await scrape(relay, 1)
    assert found.of("sockpair_flow_info")[0].labels["listener"] == 'a"b\\c\nd'


async def test_a_flow_that_ends_meanwhile_is_left_out() -> None:
    class Hasty(FakeRelay):
        async def flow_ids(self, query):  # type: ignore[no-untyped-def]
            found = await super().flow_ids(query)
            self.end(self.live[0], CloseReason.FINISHED, CloseSide.CLIENT)
            return found

        async def flow_rows(self, ids, *, recent):  # type: ignore[no-untyped-def]
            by_id = {flow.id for flow in self.live}
            rows = iter(await super().flow_rows(ids, recent=recent))
            return [next(rows) if id in by_id else None for id in ids]

    relay = Hasty()
    relay.open_tcp(original=5)
    relay.open_tcp(original=4)
    found = await scrape(relay)
    assert [sample.labels["flow"] for sample in found.of("sockpair_flow_info")] == ["2"]
    assert found.of(OMITTED.name)[0].value == 0


@pytest.mark.peers
async def test_promtool_has_no_complaint(relay: FakeRelay) -> None:
    done = await trio.run_process(
        [peer("promtool"), "check", "metrics"],
        stdin=(await scrape(relay)).text.encode(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
