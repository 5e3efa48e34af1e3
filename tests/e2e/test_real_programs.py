"""Real programs through sockpair get right answers, and all books agree with them to the byte."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from random import Random

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.peers import (
    RECORDS,
    ZONE,
    RedisBooks,
    dns_answer,
    dns_query,
    names,
)
from tests.e2e.program import output_of, peer
from tests.e2e.subject import Forward, Row, Sockpair, agree_nothing_lost

LARGE = 50 * 2**20
SIZES = r'{"sent": %{size_request}, "head": %{size_header}, "body": %{size_download}}'


async def curl(address: str, name: str, target: Path) -> tuple[int, int]:
    """Fetch a file; the bytes that curl sent and received, as it counts them."""
    said = await output_of(
        *(peer("curl"), "--silent", "--fail", "--noproxy", "*", "--output", target),
        *("--write-out", SIZES, f"http://{address}/{name}"),
    )
    sizes = json.loads(said)
    return sizes["sent"], sizes["head"] + sizes["body"]


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@pytest.mark.peers("nginx", "curl")
@pytest.mark.parametrize("size", [1, 1500, LARGE], ids=["1B", "1500B", "50MiB"])
async def test_curl_fetches_a_file_from_nginx(stage: Stage, size: int) -> None:
    origin = await stage.nginx()
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [origin.text]))
    file, copy = origin.folder / "html" / "file", stage.folder / "copy"
    file.write_bytes(Random(size).randbytes(size))

    sent, received = await curl(web.text, "file", copy)

    assert digest(copy) == digest(file)
    books = await sockpair.books("web", flows=1)
    assert (books.original, books.reply) == (sent, received)
    assert books.reasons == {"finished": 1}
    agree_nothing_lost("web", await sockpair.metrics())
    log = origin.folder / "access.log"
    line = await until(log.read_text, "nginx to write its log")
    assert [int(word) for word in line.split()] == [sent, received]


@pytest.mark.peers("redis-server", "redis-benchmark")
async def test_redis_benchmark_with_50_clients(stage: Stage) -> None:
    origin = await stage.redis()
    sockpair = await stage.sockpair(cache := Forward("cache", "tcp", [origin.text]))
    stream = await trio.open_tcp_stream("127.0.0.1", origin.port)
    async with stream:
        ledger = RedisBooks(stream)
        before = await ledger.read()

        said = await output_of(
            *(peer("redis-benchmark"), "-h", cache.host, "-p", str(cache.port)),
            *("-c", "50", "-n", "5000", "-t", "set,get,lpush,lrange_100", "-d", "100", "--csv"),
        )

        books = await sockpair.books("cache")
        after = await ledger.read()
    assert len(books.rows) >= 4 * 50
    assert re.findall(r'^"(SET|GET|LPUSH)"', said, re.MULTILINE) == ["SET", "GET", "LPUSH"]
    assert books.original == after.received - before.received
    assert books.reply == after.sent - before.sent
    assert set(books.reasons) == {"finished"}
    agree_nothing_lost("cache", await sockpair.metrics())


@pytest.mark.peers("nsd", "dig")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_dig_gets_right_answers(stage: Stage, host: str) -> None:
    origin = await stage.nsd()
    endpoint = f"[{host}]:{origin.port}" if ":" in host else f"{host}:{origin.port}"
    limits = {"idle": "300ms", "unreplied": "300ms"}
    sockpair = await stage.sockpair(dns := Forward("dns", "udp", [endpoint], host, limits))

    said = await output_of(
        *(peer("dig"), f"@{host}", "-p", str(dns.port), "+qr", "+tries=1", "+nocookie"),
        *(f"r0007.{ZONE}", "A"),
    )

    assert re.search(rf"^r0007\.{ZONE}\.\s+3600\s+IN\s+A\s+192\.0\.2\.7$", said, re.MULTILINE)
    asked = re.search(r"QUERY SIZE: (\d+)", said)
    answered = re.search(r"MSG SIZE\s+rcvd: (\d+)", said)
    assert asked is not None
    assert answered is not None
    books = await sockpair.books("dns", flows=1)
    assert (books.original, books.reply) == (int(asked[1]), int(answered[1]))
    assert books.datagrams == (1, 1)
    assert books.reasons == {"idle_timeout": 1}


@pytest.mark.peers("nsd", "dig")
async def test_dig_gets_a_long_answer_in_one_datagram(stage: Stage) -> None:
    origin = await stage.nsd()
    await stage.sockpair(dns := Forward("dns", "udp", [origin.text]))
    said = await output_of(
        *(peer("dig"), "@127.0.0.1", "-p", str(dns.port), "+bufsize=4096", "+ignore"),
        *("+tries=1", f"long.{ZONE}", "TXT"),
    )
    assert said.count('"' + "x" * 200 + '"') == 15


@pytest.mark.peers("nsd", "dnsperf")
async def test_dnsperf_loses_no_query(stage: Stage) -> None:
    origin = await stage.nsd()
    dns = Forward("dns", "udp", [origin.text], limits={"idle": "500ms", "unreplied": "500ms"})
    sockpair = await stage.sockpair(dns)
    questions = stage.folder / "questions"
    questions.write_text("".join(f"{name}.{ZONE} A\n" for name in names()))
    rounds = 25

    said = await output_of(
        *(peer("dnsperf"), "-s", dns.host, "-p", str(dns.port), "-d", questions),
        *("-n", str(rounds), "-c", "8", "-T", "1", "-q", "40"),
    )

    count = rounds * RECORDS
    assert re.search(rf"Queries sent:\s+{count}$", said, re.MULTILINE), said
    assert re.search(rf"Queries completed:\s+{count} \(100.00%\)", said), said
    assert re.search(rf"Response codes:\s+NOERROR {count} ", said), said
    query = dns_query(f"r0000.{ZONE}")
    answer = await dns_answer(origin.port, query)
    books = await sockpair.books("dns", flows=8)
    assert books.datagrams == (count, count)
    assert books.original == count * len(query)
    assert books.reply == count * len(answer)
    metrics = await sockpair.metrics()
    agree_nothing_lost("dns", metrics)
    assert metrics.sum("sockpair_datagrams_dropped_total", listener="dns") == 0


@pytest.mark.peers("iperf3")
@pytest.mark.parametrize("reverse", [False, True], ids=["upload", "download"])
async def test_iperf3(stage: Stage, reverse: bool) -> None:
    origin = await stage.iperf3()
    sockpair = await stage.sockpair(bulk := Forward("bulk", "tcp", [origin.text]))

    end = await measure(bulk, reverse)

    books = await sockpair.books("bulk", flows=2)
    data = max(books.rows, key=lambda row: row["original"]["bytes"] + row["reply"]["bytes"])
    await compare(sockpair, data, end, reverse)


COOKIE = 37
"""Bytes that an iperf3 client sends first on every connection."""


async def measure(bulk: Forward, reverse: bool) -> dict[str, dict[str, int]]:
    said = await output_of(
        *(peer("iperf3"), "--client", bulk.host, "--port", str(bulk.port), "--json"),
        *("--bytes", "200M", *(["--reverse"] if reverse else [])),
    )
    end: dict[str, dict[str, int]] = json.loads(said)["end"]
    return end


async def compare(
    sockpair: Sockpair, data: Row, end: dict[str, dict[str, int]], reverse: bool
) -> None:
    """Compare the flow that carried the data with what both ends of iperf3 say.

    iperf3 ends by the clock of its other connection: the receiver may close before it has read
    all, and what it left unread is in our books and not in its own. So these are bounds: equal
    when nothing was left unread.
    """
    sent, received = end["sum_sent"]["bytes"], end["sum_received"]["bytes"]
    assert received > 0
    direction, greeting = ("reply", 0) if reverse else ("original", COOKIE)
    carried = data[direction]["bytes"] - greeting
    assert received <= carried <= sent
    if data["close_reason"] == "finished":
        agree_nothing_lost("bulk", await sockpair.metrics())
