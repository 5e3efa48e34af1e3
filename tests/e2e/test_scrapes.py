"""Scrapes under traffic: they agree with each other, with themselves and with the table."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from itertools import pairwise

import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.sockets import connect, echo, listen, say
from tests.e2e.subject import Forward, Metrics, Sockpair

CLIENTS = [f"127.0.0.{host}" for host in range(1, 13)]  # so that each of two workers has some
SCRAPES = 4


async def test_no_count_falls_and_every_flow_is_accounted_for_though_a_worker_dies(
    stage: Stage,
) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, workers=2)
    workers = [row["pid"] for row in (await sockpair.status())["workers"]]
    async with trio.open_nursery() as traffic:
        for host in CLIENTS:
            traffic.start_soon(converse, web, host)
        scrapes = [await _both(sockpair) for _ in range(SCRAPES)]
        os.kill(workers[0], signal.SIGKILL)
        scrapes += [await _both(sockpair) for _ in range(SCRAPES)]

        async def replaced() -> bool:
            return (await sockpair.metrics()).sum("sockpair_worker_restarts_total") == 1

        await until(replaced, "the worker to be replaced")
        scrapes += [await _both(sockpair) for _ in range(SCRAPES)]
        traffic.cancel_scope.cancel()
    flat = [text for pair in scrapes for text in pair]
    for text in flat:
        _balanced(Metrics(text))
    for before, after in pairwise([[_counts(text) for text in pair] for pair in scrapes]):
        for one in before:
            for other in after:
                assert one.keys() <= other.keys()
                fallen = {key: (one[key], other[key]) for key in one if other[key] < one[key]}
                assert not fallen
    assert Metrics(flat[-1]).sum("sockpair_flows_opened_total") > len(CLIENTS)
    await sockpair.wait_flows(0)


async def test_metrics_of_flows_are_the_table(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    async with await connect(web.address) as one, await connect(web.address) as other:
        await say(one, b"hello")
        await say(other, b"hello, hello")
        rows = {str(row["id"]): row for row in await sockpair.wait_flows(2)}
        text = await sockpair.get("/metrics/flows")
        metrics = Metrics(text)
        assert metrics.sum("sockpair_flow_omitted") == 0
        for id, row in rows.items():
            info = metrics.by("sockpair_flow_info", "client", flow=id)
            assert info == {row["client"]["remote"]: 1}
            for way in ("original", "reply"):
                told = metrics.sum(f"sockpair_flow_{way}_bytes_total", flow=id)
                assert told == row[way]["bytes"] > 0
        sums = await sockpair.metrics()
        for leg, way in (("client", "original"), ("endpoint", "reply")):
            everything = sums.sum(f"sockpair_{leg}_received_bytes_total", listener="web")
            assert everything == metrics.sum(f"sockpair_flow_{way}_bytes_total")


async def converse(web: Forward, host: str) -> None:
    """Connect, say something and leave, again and again; a worker's death is an end as well."""
    while True:
        try:
            with trio.socket.socket() as client:
                await client.bind((host, 0))
                await client.connect(web.address)
                await client.send(b"hello")
                await client.recv(100)
        except ConnectionError:
            await trio.sleep(0.01)


async def _both(sockpair: Sockpair) -> tuple[str, str]:
    """Two scrapes at the same time."""
    texts: list[str] = []

    async def scrape() -> None:
        texts.append(await sockpair.get("/metrics"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrape)
        nursery.start_soon(scrape)
    return texts[0], texts[1]


def _balanced(metrics: Metrics) -> None:
    """Prove that a scrape agrees with itself."""
    live = metrics.sum("sockpair_flows")
    closed = metrics.by("sockpair_flows_closed_total", "reason")
    assert metrics.sum("sockpair_flows_opened_total") == live + sum(closed.values())
    assert metrics.sum("sockpair_table_entries") == live
    durations = metrics.sum("sockpair_flow_duration_seconds_count")
    assert durations == sum(closed.values()) - closed["internal"]  # nobody saw how those ended
    assert metrics.sum("sockpair_flow_bytes_count", direction="reply") == durations
    for way, source, target in (
        ("original", "client", "endpoint"),
        ("reply", "endpoint", "client"),
    ):
        received = metrics.sum(f"sockpair_{source}_received_bytes_total")
        sent = metrics.sum(f"sockpair_{target}_sent_bytes_total")
        assert 0 <= sent <= received - metrics.sum("sockpair_buffered_bytes", direction=way)


def _counts(text: str) -> dict[tuple[str, str], float]:
    """Everything of a scrape that may only grow."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        if family.type not in ("counter", "histogram"):
            continue
        for sample in family.samples:
            if sample.name.startswith("sockpair_"):
                found[sample.name, str(sorted(sample.labels.items()))] = sample.value
    return found
