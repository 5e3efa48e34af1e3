"""The parts of the benchmark that decide without measuring: reading, medians, goals, the table."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread

import pytest
import tomli

from proxy.config.load import load
from proxy.core.steering import worker_of
from tests.bench import bytecodes, shaping, workers
from tests.bench.__main__ import chosen, plan, split_cores, without_groups
from tests.bench.degrade import counted_in, flood_figures
from tests.bench.flood import UNKNOWN, Packets, packet
from tests.bench.load import LoadError, Outcome, last_figures, read_iperf3, read_wrk
from tests.bench.machine import cpu_model
from tests.bench.measure import Reading, figures, others_share, scrape_figures
from tests.bench.peers import ROOT, all_peers
from tests.bench.pingpong import percentile
from tests.bench.programs import is_listening
from tests.bench.report import Sample, disturbances, medians, standing, summary, table
from tests.bench.usage import SESSION, SYSTEM, USER, Usage, stat_fields, threads_of
from tests.bench.workload import Goal
from tests.bench.workloads import WORKLOADS

WRK = """\
Running 2s test @ http://127.0.0.1:20000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.10ms    1.25ms  20.51ms   90.01%
  Latency Distribution
     50%  850.00us
     75%    1.02ms
     90%    1.90ms
     99%    6.50ms
  91000 requests in 2.00s, 15.62MB read
"""

PARTS = [(workload, part) for workload in WORKLOADS for part in workload.parts]


def samples_of(**figures_by_proxy: list[dict[str, float]]) -> list[Sample]:
    return [
        Sample(number, "request", "", proxy, figures)
        for proxy, rounds in figures_by_proxy.items()
        for number, figures in enumerate(rounds, start=1)
    ]


def test_wrk_is_read() -> None:
    assert read_wrk(WRK) == Outcome(units=91000, seconds=2.0, p50=850.0, p99=6500.0, errors=0)


def test_wrk_errors_of_every_kind_are_added_up() -> None:
    text = (
        f"{WRK}  Socket errors: connect 1, read 20, write 300, timeout 4000\n"
        "  Non-2xx or 3xx responses: 50000\n"
    )

    assert read_wrk(text).errors == 54321


def test_wrk_minutes_are_read() -> None:
    text = "  9 requests in 1.50m, 1KB read\n"

    assert read_wrk(text) == Outcome(units=9, seconds=90.0)


def test_wrk_without_total_is_an_error() -> None:
    with pytest.raises(LoadError, match="no total"):
        read_wrk("unable to connect")


def test_iperf3_is_read() -> None:
    text = json.dumps({"end": {"sum_received": {"bytes": 3 * 10**9, "seconds": 2.5}}})

    assert read_iperf3(text) == Outcome(units=3e9, seconds=2.5)


@pytest.mark.parametrize("text", ["", '{"error": "refused"}', '{"end": {}}'])
def test_iperf3_without_sum_is_an_error(text: str) -> None:
    with pytest.raises(LoadError, match="no sum"):
        read_iperf3(text)


def test_stat_is_read_behind_a_name_with_brackets_and_spaces() -> None:
    fields = stat_fields("12 (a b) c) S 1 12 12 0 -1 0 1 2 3 4 700 80 0 0\n")

    assert (fields[SESSION], fields[USER], fields[SYSTEM]) == ("12", "700", "80")


def test_a_listening_port_is_told_from_a_connected_one() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000\n"
    )

    assert is_listening(table, 0x1F90)
    assert not is_listening(table, 0x1F91)


def test_figures_are_per_unit() -> None:
    before, after = Usage(1.0, 2.0, 0), Usage(1.5, 3.0, 0)

    found = figures(before, after, Outcome(units=100_000, seconds=3.0), 1e6)

    assert found["cpu"] == pytest.approx(15.0)
    assert found["cpu_system"] == pytest.approx(10.0)
    assert found["busy"] == pytest.approx(50.0)
    assert found["rate"] == pytest.approx(33_333, abs=1)
    assert "p50" not in found


def test_what_others_did_on_the_core_is_a_share_of_the_time() -> None:
    before = Reading(Usage(1.0, 1.0, 0), core=10.0, time=100.0)
    after = Reading(Usage(2.0, 2.0, 0), core=13.0, time=104.0)

    assert others_share(before, after) == pytest.approx(25.0)


def test_figures_of_no_work_are_finite() -> None:
    assert figures(Usage(0, 0, 0), Usage(0, 0, 0), Outcome(0, 1.0), 1e6)["cpu"] == 0


def test_scrapes_are_told_in_milliseconds_and_compared() -> None:
    scraped = Outcome(10, 1.0, p50=4000, p99=9000, most=12000)

    found = scrape_figures(scraped, Outcome(1, 1, 50, 100), Outcome(1, 1, 50, 120))

    assert (found["scrape"], found["scrape_most"]) == (4.0, 12.0)
    assert found["moved"] == pytest.approx(1.2)


def test_the_last_line_of_a_load_has_its_figures() -> None:
    assert last_figures('{"flows": 1}\n{"units": 2, "seconds": 1.5}\n') == {
        "units": 2,
        "seconds": 1.5,
    }


def test_a_load_without_figures_is_an_error() -> None:
    with pytest.raises(LoadError, match="no figures"):
        last_figures('{"flows"')


SERVED = {
    "sent": 100.0,
    "reached": 90.0,
    "answered": 88.0,
    "dropped_there": 1.0,
    "dropped_here": 2.0,
    "p50": 1.0,
    "p99": 2.0,
}
FLOOD = {"sent": 900.0, "seconds": 2.0}
COUNTED = {"passed": 141.0, "refused": 800.0, "kernel": 59.0, "opened": 50.0, "served": 91.0}


def test_a_flood_is_balanced_when_every_loss_is_the_kernels() -> None:
    found = flood_figures(SERVED, FLOOD, COUNTED)

    assert (found["lost_original"], found["lost_reply"], found["unaccounted"]) == (0, 0, 0)
    assert found["served_share"] == pytest.approx(9.0)
    assert found["kernel_share"] == pytest.approx(5.9)


def test_a_flood_shows_what_the_proxy_loses() -> None:
    served = SERVED | {"reached": 87.0, "answered": 80.0}

    found = flood_figures(served, FLOOD, COUNTED | {"refused": 790.0})

    assert (found["lost_original"], found["lost_reply"], found["unaccounted"]) == (3, 5, 10)


def test_metrics_are_added_up_by_their_beginnings() -> None:
    text = (
        'sockpair_flows_refused_total{listener="bench",reason="table_full"} 5.0\n'
        'sockpair_flows_refused_total{listener="bench",reason="loop"} 2.0\n'
        'sockpair_datagrams_dropped_total{listener="bench",reason="kernel"} 3.0\n'
        'sockpair_datagrams_dropped_total{listener="bench",reason="refused"} 9.0\n'
    )

    assert counted_in(text) == {"passed": 0, "refused": 7, "kernel": 3, "opened": 0}


def test_a_packet_of_the_flood_is_whole() -> None:
    made = packet(53, 0x1234)

    assert made[12:16] == bytes([127, 0, 0x12, 0x34])
    assert made[16:20] == bytes([127, 0, 0, 1])
    assert int.from_bytes(made[22:24]) == 53
    assert int.from_bytes(made[24:26]) == len(made) - 20
    assert made[28:] == UNKNOWN


def test_a_further_pass_of_the_flood_has_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.flood.PASS", 64)
    packets = Packets(53)

    packets.change(7)

    sources = {
        bytes(packets.data[start + 12 : start + 16])
        for start in range(0, len(packets.data), packets.size)
    }
    assert len(sources) == 64
    assert {source[1] for source in sources} == {7}


def test_a_group_stands_for_its_workloads() -> None:
    named = [work.name for work in chosen(WORKLOADS, without_groups("bulk,degrade"), "workload")]

    assert named[:2] == ["bulk", "greedy"]
    assert "readers" in named


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.5, 51), (0.99, 100), (1.0, 100)], ids=str
)
def test_percentiles(share: float, value: int) -> None:
    assert percentile(range(1, 101), share) == value


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.5) == 0


def test_median_over_rounds_by_proxy() -> None:
    samples = samples_of(
        sockpair=[{"cpu": 9.0}, {"cpu": 1.0}, {"cpu": 2.0}], nginx=[{"cpu": 4.0}, {"cpu": 6.0}]
    )

    assert medians(samples, "request", "", "cpu") == {"sockpair": 2.0, "nginx": 5.0}
    assert medians(samples, "request", "", "p50") == {}


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(7.0, "reached 0.8"), (8.0, "reached 0.8"), (9.0, "reached 0.95"), (9.6, "not reached")],
)
def test_standing_to_the_best_peer(value: float, verdict: str) -> None:
    where = standing({"sockpair": value, "nginx": 10.0, "haproxy": 11.0}, Goal(0.95, 0.8))

    assert where is not None
    assert where.best == ("nginx", 10.0)
    assert where.compared == pytest.approx(value / 10)
    assert where.verdict == verdict


def test_standing_of_a_value_that_has_no_peer() -> None:
    where = standing({"sockpair": 19.0, "nginx": 1.0}, Goal(20.0, to_peer=False))

    assert where is not None
    assert (where.best, where.verdict) == (None, "reached 20")


def test_standing_without_peers_or_without_sockpair() -> None:
    alone = standing({"sockpair": 1.0}, Goal(1.0))

    assert alone is not None
    assert alone.verdict == "no peer"
    assert standing({"nginx": 1.0}, Goal(1.0)) is None


def test_the_floor_is_no_peer() -> None:
    where = standing({"sockpair": 12.0, "nginx": 10.0, "floor": 8.0}, Goal(1.25, 1.0))

    assert where is not None
    assert where.best == ("nginx", 10.0)
    assert where.floor_to_best == pytest.approx(0.8)
    assert where.to_floor == pytest.approx(1.5)


def test_table_tells_the_floor_only_where_it_was_measured() -> None:
    peers = {"sockpair": [{"cpu": 18.0}], "nginx": [{"cpu": 15.0}]}
    with_floor = samples_of(**peers, floor=[{"cpu": 12.0}])

    lines = table(with_floor, WORKLOADS[:1], ["sockpair", "nginx", "floor"]).splitlines()

    (found,) = (line for line in lines if " 0.80 " in line)
    assert found.split()[-7:] == ["12.00", "0.80", "1.50", "<=", "1.25,", "then", "1"]
    assert "the floor" not in table(samples_of(**peers), WORKLOADS[:1], ["sockpair", "nginx"])


def test_table_shows_medians_and_goals() -> None:
    samples = samples_of(
        sockpair=[{"cpu": 18.0, "rate": 50_000.0}],
        nginx=[{"cpu": 15.0, "rate": 60_000.0, "errors": 2}],
    )

    lines = table(samples, WORKLOADS[:1], ["sockpair", "nginx", "envoy"]).splitlines()

    assert any(line.split()[-3:] == ["18.00", "15.00", "-"] for line in lines)
    assert any(line.split()[-3:] == ["50,000", "60,000", "-"] for line in lines)
    assert any(line.split() == ["errors", "-", "2", "-"] for line in lines)
    (goal,) = (line for line in lines if line.endswith("reached 1.25"))
    assert "15.00 nginx" in goal
    assert " 1.20 " in goal


def test_measurements_beside_other_programs_are_counted() -> None:
    samples = samples_of(sockpair=[{"others": 1.0}, {"others": 50.0}], nginx=[{"memory": 1.0}])

    assert disturbances(samples).endswith("in 1 of 2 measurements")


def test_summary_is_json() -> None:
    samples = samples_of(sockpair=[{"cpu": 18.0}], nginx=[{"cpu": 15.0}])

    (found,) = json.loads(json.dumps(summary(samples, WORKLOADS)))

    assert (found["best_peer"], found["compared"], found["goal"]) == ("nginx", 1.2, [1.25, 1.0])


def test_workloads_and_parts_have_names_of_their_own() -> None:
    names = [(workload.name, part.name) for workload, part in PARTS]

    assert len(names) == len(set(names))


def test_rounds_are_interleaved_and_begin_with_another_proxy() -> None:
    rounds = plan(2, WORKLOADS, all_peers(""))
    planned = [(number, work.name, peer.name) for number, work, peer in rounds]

    assert [name for number, work, name in planned if (number, work) == (1, "request")] == [
        "sockpair",
        "haproxy",
        "nginx",
        "envoy",
        "floor",
    ]
    assert [name for number, work, name in planned if (number, work) == (2, "udp1")] == [
        "nginx",
        "envoy",
        "floor",
        "sockpair",
    ]
    assert [name for number, work, name in planned if work == "metrics"] == ["sockpair"] * 2


def test_the_proxy_has_a_core_of_its_own_where_there_are_two() -> None:
    assert split_cores([0, 1]) == ([0], 1)
    assert split_cores([2, 3, 4, 5]) == ([2, 3, 4], 5)
    assert split_cores([7]) == ([7], 7)


def test_cpu_model() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nmodel name\t: B\n") == (
        "A CPU @ 3 GHz"
    )


def test_every_thread_of_a_session_is_told_apart() -> None:
    threads = threads_of(os.getsid(0))
    assert os.getpid() in threads
    assert all(seconds >= 0 for seconds in threads.values())


def test_a_second_worker_is_judged_by_all_three_figures() -> None:
    one = workers.Sample(rate=100, cpu=8.0, busiest=8.0, rest=2.0, errors=1)
    two = workers.Sample(rate=150, cpu=8.8, busiest=4.4, rest=2.0, errors=0)
    gain = workers.Gain(one, two)
    assert gain.rate == pytest.approx(1.5)
    assert gain.cpu == pytest.approx(1.1)
    assert gain.busiest == pytest.approx(50)
    assert gain.enough == pytest.approx(8.0 / 4.4)


def test_the_median_of_the_rounds_is_told_with_its_ends() -> None:
    assert workers.cell([1.25, 1.04, 1.111], 2) == "1.11 (1.04 to 1.25)"


@pytest.mark.parametrize("proxy", workers.PROXIES)
def test_each_hop_leads_to_the_next_and_the_last_to_the_origin(tmp_path: Path, proxy: str) -> None:
    command = workers.PROXIES[proxy](tmp_path, 2, [[1001, 1002, 1005], [1003, 1004, 1005]])
    text = Path(command[-1]).read_text()
    ports = [int(port) for port in re.findall(r":(100[1-5])", text)]
    assert ports == [1001, 1002, 1002, 1005, 1003, 1004, 1004, 1005]
    if proxy == "haproxy":
        assert re.findall(r" thread (\d)", text) == ["1", "1", "2", "2"]
        return
    assert load(command[-1]).engine.workers == 2
    exits = tomli.loads(text)["upstream"]["hop1003"]["source"]
    assert {worker_of(ip_address(each), 2) for each in exits} == {1}
    assert {worker_of(ip_address(each), 2) for each in workers.entries(0)} == {0}


def test_bytecodes_are_counted_between_two_signals(tmp_path: Path) -> None:
    target, program = tmp_path / "counts", tmp_path / "counted.py"
    program.write_text(
        "import os, signal\n"
        "def once(): return 1\n"
        "once()\n"
        "os.kill(os.getpid(), signal.SIGPROF)\n"
        "for _ in range(5): once()\n"
        "os.kill(os.getpid(), signal.SIGPROF)\n"
        "once()\n"
    )
    command = [sys.executable, "-m", "tests.bench.bytecodes", "inside", str(target), "counted"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    counts = {name.split()[1]: found for name, found in json.loads(target.read_text()).items()}
    codes, calls = counts["once:2"]
    assert calls == 5
    assert codes in {5, 10}  # RESUME is not told, and LOAD_CONST and RETURN are one in Python 3.12


def test_bytecodes_are_told_for_a_unit_and_by_function() -> None:
    counts = {"a.py less:1": (100, 10), "b.py more:2": (300, 30)}
    first, *rest = bytecodes.table(10, counts, 1).splitlines()
    assert first == "40 bytecodes and 4.0 calls, of 10 units"
    assert [line.split() for line in rest] == [["30.0", "3.00", "b.py", "more:2"]]


@contextmanager
def pouring(streams: int, late: float) -> Iterator[int]:
    """Endpoints that send without end, the last of them so much later; the port."""
    ended = Event()

    def pour(stream: socket.socket, pause: float) -> None:
        with stream, suppress(OSError):
            ended.wait(pause)
            while not ended.wait(0.001):
                stream.sendall(bytes(1000))

    def accept(listening: socket.socket) -> None:
        for number in range(streams):
            stream, _ = listening.accept()
            pause = late if number == streams - 1 else 0.0
            Thread(target=pour, args=(stream, pause), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        Thread(target=accept, args=(listening,), daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            ended.set()


def test_fairness_is_measured_when_the_last_flow_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaping, "SETTLED", 0.01)
    held = iter((1.0, 1.1))
    with pouring(streams=3, late=0.4) as port:
        division = shaping.divided(port, 2, 0.2, lambda: next(held))
    assert division.one > division.many / 10
    assert 0.1 < division.waited < 0.4  # 0.1 of 0.3 s, on a machine that does other things too


def test_a_flow_that_never_begins_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaping, "LATEST", 0.2)
    with (
        pouring(streams=3, late=60) as port,
        pytest.raises(TimeoutError, match="1 flows have not begun"),
    ):
        shaping.divided(port, 2, 0.2, float)
