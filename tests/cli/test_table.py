"""flows, find, kill and status, as a person or a script meets them, against a real admin socket."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import click
import pytest
import structlog.testing
import trio
from click import unstyle
from click.testing import CliRunner, Result

from proxy.cli import client, main
from proxy.cli.columns import flow_columns, table_lines
from proxy.config.model import Admin
from proxy.core.flow import CloseReason
from proxy.core.survive import Stay
from proxy.observe.server import serve_admin
from tests.e2e.patience import PATIENCE
from tests.observe.admin import unix_listener
from tests.observe.fake_relay import WALL, FakeRelay, FakeSteward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class House:
    """A fake relay whose admin socket is served by a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.relay = FakeRelay()
        self.steward = FakeSteward()
        self.relay.open_tcp(("192.0.2.7", 51000), original=1300, reply=36_000_000)
        self.relay.open_udp()
        self.relay.end(self.relay.open_tcp(("192.0.2.8", 53000)), CloseReason.CLIENT_RESET)
        self._scope = trio.CancelScope()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        environment = {"SOCKPAIR_ADMIN": self.path}
        return CliRunner(env=environment).invoke(main, arguments, input=stdin)

    def soon(self, act: Callable[[], object]) -> None:
        """Have something happen in the relay's thread, after what was asked for before."""
        self._token.run_sync_soon(act)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._serve_admin)
            self._ready.set()

    async def _serve_admin(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            listeners = [unix_listener(self.path)]
            await serve_admin(self.relay, self.steward, listeners, task_status=task_status)

    def __enter__(self) -> House:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(PATIENCE)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with structlog.testing.capture_logs(), House(tmp_path / "admin.sock") as house:
        yield house


def test_flows_is_an_aligned_table(house: House) -> None:
    result = house.run("flows")
    assert (result.exit_code, result.stderr) == (0, "")
    head, tcp, udp = result.stdout.splitlines()
    assert " ".join(head.split()) == (
        "ID LISTENER PROTO STATE CLIENT LOCAL OUTBOUND ENDPOINT ORIGINAL REPLY AGE IDLE"
    )
    assert " ".join(tcp.split()).startswith(
        "1 web tcp established 192.0.2.7:51000 192.0.2.1:8080 "
        "10.0.0.9:40001 10.0.0.1:80 1.3KiB 34.3MiB "
    )
    assert " ".join(udp.split()).startswith(
        "2 dns udp unreplied [2001:db8::7]:5353 [2001:db8::1]:53 - - 0B 0B "
    )
    assert tcp.index("192.0.2.7") == head.index("CLIENT") == udp.index("[2001:db8::7]")


@pytest.mark.parametrize("options", [[], ["--recent"], ["-l"]])
def test_flows_in_a_pipe_is_plain(house: House, options: list[str]) -> None:
    text = house.run("flows", *options).stdout
    assert "\x1b" not in text
    assert " \n" not in text


def test_flows_that_would_stay_behind_say_why(house: House) -> None:
    house.relay.stays[house.relay.live[1].id] = Stay.MULTICAST
    head, tcp, udp = house.run("flows").stdout.splitlines()
    assert [line.split()[-1] for line in (head, tcp, udp)] == ["STAYS", "-", "multicast"]
    head, udp = house.run("find", "[2001:db8::7]:5353").stdout.splitlines()
    assert [line.split()[-1] for line in (head, udp)] == ["STAYS", "multicast"]
    assert [row["stays"] for row in json.loads(house.run("flows", "-o", "json").stdout)] == [
        None,
        "multicast",
    ]


def test_flows_exact_bytes(house: House) -> None:
    assert "36000000" in house.run("flows", "-b").stdout


def test_flows_recent_says_how_they_ended(house: House) -> None:
    head, row = house.run("flows", "--recent").stdout.splitlines()
    assert head.split()[-3:] == ["LIVED", "REASON", "SIDE"]
    assert "LAST STATE" in head
    assert row.split()[-3:] == ["2s", "client_reset", "client"]


def test_flows_recent_has_the_last_active_first_unless_told_otherwise(house: House) -> None:
    def open_and_end() -> None:
        later = house.relay.open_tcp(("192.0.2.9", 54000))
        later.active = 12.0
        house.relay.end(later)

    house.soon(open_and_end)
    first = house.run("flows", "--recent", "--limit", "1").stdout.splitlines()[1]
    assert "192.0.2.9:54000" in first
    first = house.run("flows", "--recent", "--limit", "1", "--sort", "id").stdout.splitlines()[1]
    assert "192.0.2.8:53000" in first


def test_flows_evictable_says_by_which_class(house: House) -> None:
    head, udp, tcp = house.run("flows", "--evictable").stdout.splitlines()
    assert head.split()[-1] == "CLASS"
    assert udp.split()[-1] == "unreplied"
    assert tcp.split()[-1] == "idle"
    head, udp = house.run("flows", "--evictable", "--for", "UDP").stdout.splitlines()
    assert udp.split()[-1] == "unreplied"


def test_flows_evictable_json_is_rows_like_any_other(house: House) -> None:
    rows = json.loads(house.run("flows", "-o", "json").stdout)
    evictable = json.loads(house.run("flows", "--evictable", "-o", "json").stdout)
    assert evictable == rows[::-1]


def test_flows_listen_shows_listening_sockets(house: House) -> None:
    head, web, dns = house.run("flows", "-l").stdout.splitlines()
    assert head.split() == ["LISTENER", "PROTO", "STATE", "LOCAL", "UPSTREAM", "SURVIVE"]
    assert web.split() == ["web", "tcp", "listen", "0.0.0.0:8080", "web", "crash"]
    assert dns.split() == ["dns", "udp", "listen", "[::]:53", "resolvers", "restart"]
    (row,) = json.loads(house.run("flows", "-l", "--transport", "udp", "-o", "json").stdout)
    assert (row["listener"], row["state"]) == ("dns", "listen")


def test_flows_json_is_one_array_and_ndjson_one_object_a_line(house: House) -> None:
    rows = json.loads(house.run("flows", "-o", "json").stdout)
    assert [row["id"] for row in rows] == [1, 2]
    lines = house.run("flows", "-o", "ndjson").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert (
        house.run("flows", "--listener", "dns", "--state", "assured", "-o", "ndjson").stdout == ""
    )


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--listener", "web"], [1]),
        (["--client", "2001:db8::/32"], [2]),
        (["--endpoint", "10.0.0.0/8"], [1]),
        (["--state", "unreplied"], [2]),
        (["--transport", "udp"], [2]),
        (["--min-bytes", "1MiB"], [1]),
        (["--server-name", "www.example.org"], []),
        (["--sort", "bytes", "--limit", "1"], [1]),
        (["--limit", "0"], [1, 2]),
        (["--client", "192.0.2.7:51000"], [1]),
        (["--client", "192.0.2.7:51001"], []),
        (["--client", "[2001:db8::7]:5353"], [2]),
        (["--endpoint", "10.0.0.1:80"], [1]),
        (["--state", "ESTABLISHED"], [1]),
        (["--transport", "UDP"], [2]),
    ],
)
def test_options_are_the_filters_of_the_api(
    house: House, options: list[str], ids: list[int]
) -> None:
    rows = json.loads(house.run("flows", *options, "-o", "json").stdout)
    assert [row["id"] for row in rows] == ids


def test_a_cut_listing_says_so(house: House) -> None:
    assert house.run("flows", "--limit", "1").stderr == "1 of 2 flows shown\n"


@pytest.mark.parametrize("form", ["table", "json", "ndjson"])
def test_a_listing_without_a_worker_that_does_not_answer_says_so(house: House, form: str) -> None:
    house.relay.silent = [1]
    result = house.run("flows", "-o", form)
    assert (result.exit_code, result.stderr) == (
        0,
        "worker 1 does not answer: flows are missing\n",
    )
    house.relay.silent = [1, 3]
    found = house.run("find", "51000", "-o", form)
    assert found.stderr == "workers 1, 3 do not answer: flows are missing\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flows", "--client", "nowhere"], "'--client': \"nowhere\" is not allowed"),
        (["flows", "--min-bytes", "1K"], "'--min-bytes': \"1K\" is not allowed; write bytes"),
        (["flows", "--min-bytes", "1K"], "kB, MB, GB, TB, KiB"),
        (["limit", "--id", "1", "--bandwidth", "1KB/s"], '"1KB/s" is not allowed; write'),
        (["limit", "--id", "1", "--bandwidth", "1KB/s"], "units: B/s, kB/s, MB/s"),
        (["flows", "--listener", "wbe"], "web, dns"),
        (["flows", "--state", "open"], "established"),
        (["flows", "--limit", "-1"], "-1"),
        (["flows", "-l", "--client", "10.0.0.1"], "leave out --client"),
        (["flows", "-l", "--recent"], "leave out --recent"),
        (["flows", "-l", "--evictable", "--for", "udp"], "leave out --evictable"),
        (["flows", "--for", "udp"], "--for goes with --evictable"),
        (["flows", "--evictable", "--sort", "bytes"], "'--sort': not with evictable"),
        (["find", "web:80"], "'[ADDR:]PORT': \"web:80\" is not allowed"),
        (["find", "70000"], "'[ADDR:]PORT': \"70000\" is not allowed; write a port number"),
        (["kill"], "say which"),
        (["kill", "1", "--listener", "web"], "not both"),
        (["kill", "--all", "--listener", "web"], "not both"),
        (["kill", "1", "one"], '"one" is not the ID of a flow'),
        (["flow"], 'no such command "flow"; did you mean "flows"?'),
        (["flows", "--admin", ""], "it is empty"),
        (["flows", "--admin", "127.0.0.1:9600"], "expected the path of a Unix socket"),
        (["flows", "--admin", "http://[::1]:9600/"], "expected the path of a Unix socket"),
    ],
)
def test_a_wrong_question_is_exit_2(house: House, arguments: list[str], words: str) -> None:
    result = house.run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_find_shows_live_and_closed(house: House) -> None:
    result = house.run("find", "10.0.0.1:80")
    assert result.exit_code == 0
    words = [line.split()[:1] for line in result.stdout.splitlines()]
    assert words == [["ID"], ["1"], [], ["ID"], ["3"]]
    assert "client_reset" in result.stdout
    rows = json.loads(house.run("find", "10.0.0.9:40001", "-o", "json").stdout)
    assert [row["id"] for row in rows] == [1]


@pytest.mark.parametrize("port", ["40001", ":40001"])
def test_find_takes_a_port_of_any_address(house: House, port: str) -> None:
    rows = json.loads(house.run("find", port, "-o", "json").stdout)
    assert [row["id"] for row in rows] == [1]
    none = house.run("find", ":9")
    assert (none.exit_code, none.stdout) == (1, "")
    assert "no flow has port 9 on either pair" in none.stderr


def test_find_none_is_exit_1(house: House) -> None:
    result = house.run("find", "10.0.0.1:81")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: no flow has 10.0.0.1:81 on either pair, live or recently closed\n"
    )
    house.relay.silent = [0]
    unsure = house.run("find", "10.0.0.1:81").stderr
    assert unsure == f"{result.stderr[:-1]}; but worker 0 does not answer\n"


def test_kill_by_id(house: House) -> None:
    assert house.run("kill", "1").stdout == "killed flow 1\n"
    assert [flow.id for flow in house.relay.live] == [2]
    again = house.run("kill", "1")
    assert (again.exit_code, again.stderr) == (1, "Error: no flow 1 is live\n")


def test_kill_several(house: House) -> None:
    result = house.run("kill", "2", "9", "1", "2")
    assert result.stdout == "killed flow 2\nkilled flow 1\n"
    assert (result.exit_code, result.stderr) == (1, "Error: no flow 9 is live\n")
    assert house.relay.live == []


def test_kill_by_filter_without_a_terminal_needs_yes(house: House) -> None:
    result = house.run("kill", "--listener", "web")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert len(house.relay.live) == 2
    assert house.run("kill", "--listener", "web", "--yes").stdout == "killed 1 flow\n"
    assert house.run("kill", "--all", "-y").stdout == "killed 1 flow\n"


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 2), ("", 2)])
def test_kill_on_a_terminal_asks(
    house: House, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    monkeypatch.setattr("proxy.cli.table._is_terminal", lambda: True)
    result = house.run("kill", "--all", stdin=answer)
    assert "kill 2 flows?" in result.stderr
    assert len(house.relay.live) == left
    assert result.exit_code == (1 if left else 0)


def test_kill_that_matches_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.cli.table._is_terminal", lambda: True)
    result = house.run("kill", "--client", "203.0.113.1")
    assert (result.exit_code, result.stderr) == (1, "Error: no live flow matches\n")
    result = house.run("kill", "--client", "203.0.113.1", "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: no live flow matches\n"


def test_status_is_a_few_lines(house: House) -> None:
    house.relay.not_ready = ["upstream web: no endpoint\x1b[2J"]
    result = house.run("status")
    assert result.exit_code == 0
    assert "sockpair 1.2.3, pid 4242" in result.stdout
    assert "2 of 1000" in result.stdout
    assert result.stdout.splitlines()[-2:] == [
        "listen       web  tcp://0.0.0.0:8080  to web",
        "listen       dns  udp://[::]:53       to resolvers",
    ]
    assert "no endpoint\\x1b[2J" in result.stdout
    assert "worker" not in result.stdout
    assert json.loads(house.run("status", "-o", "json").stdout)["pid"] == 4242


def test_status_says_which_worker_does_not_answer(house: House) -> None:
    house.relay.silent = [0]
    assert "worker       pid 4242, 2 flows, silent for 2s\n" in house.run("status").stdout


def test_the_default_socket_is_that_of_the_configuration() -> None:
    assert Admin().socket == client.DEFAULT_ADMIN


def test_a_missing_socket_says_what_to_start(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["flows", "--admin", str(tmp_path / "none.sock")])
    assert result.exit_code == 1
    assert "none.sock does not exist" in result.stderr
    assert "a restart makes it anew" in result.stderr, "it may run, and its socket be gone"
    assert "sockpair run -c FILE" in result.stderr
    assert "SOCKPAIR_ADMIN" in result.stderr


def test_a_left_over_socket_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "old.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    result = CliRunner().invoke(main, ["status", "--admin", path])
    assert result.exit_code == 1
    assert "left over" in result.stderr


def test_what_is_no_socket_is_called_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, tmp_path):
        result = CliRunner().invoke(main, ["status", "--admin", str(path)])
        assert result.exit_code == 1
        assert f"{path} is not a socket" in result.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "may not be opened by this user"),
        (TimeoutError(), "no answer within"),
        (OSError(36, "File name too long"), "File name too long"),
    ],
)
def test_other_socket_troubles_have_advice(
    monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def fail(_self: object) -> None:
        raise error

    monkeypatch.setattr(client._UnixConnection, "connect", fail)
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 1
    assert words in result.stderr


def test_something_else_behind_the_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "other.sock")

    def answer_nonsense() -> None:
        accepted, _ = listening.accept()
        with accepted:
            accepted.recv(4096)
            accepted.sendall(b"SSH-2.0-other\r\n")

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        thread = threading.Thread(target=answer_nonsense)
        thread.start()
        result = CliRunner().invoke(main, ["status", "--admin", path])
        thread.join(PATIENCE)
    assert result.exit_code == 1
    assert "does not speak like sockpair" in result.stderr


def rows() -> list[object]:
    relay = FakeRelay()
    flow = relay.open_tcp()
    flow.counters.listener = "we\x1bb"
    return [json.loads(relay.end(flow).row)]


def test_a_terminal_has_colours_and_no_control_characters() -> None:
    columns = flow_columns(recent=True, exact=False, now=WALL)
    lines = table_lines(columns, rows(), width=300)
    assert len(lines) == 2
    assert "\x1b[36mestablished" not in lines[1]
    assert "\x1b[32mestablished" in lines[1]
    assert "we\\x1bb" in unstyle(lines[1])


def test_a_narrow_terminal_gets_the_pairs_on_a_second_line() -> None:
    columns = flow_columns(recent=False, exact=False, now=WALL)
    head, pairs, *flow = map(unstyle, table_lines(columns, rows(), width=80))
    assert "CLIENT" not in head
    assert pairs.split() == ["CLIENT", "LOCAL", "OUTBOUND", "ENDPOINT"]
    assert len(flow) == 2
    assert flow[1].startswith("    192.0.2.7:51000")
    styled = table_lines(columns, rows(), width=80)
    assert [line.startswith("\x1b[2m") for line in styled] == [False, False, False, True]


def test_no_rows_leave_the_head() -> None:
    assert len(table_lines(flow_columns(recent=False, exact=False, now=0.0), [], width=None)) == 1


def test_commands_start_without_the_server() -> None:
    """Neither Trio nor h11, nor anything else that only a proxy needs."""
    code = (
        "import sys, proxy.cli.table\n"
        "heavy = {'trio', 'h11', 'structlog', 'pydantic', 'prometheus_client', 'rich'}\n"
        "sys.exit(str(heavy & {*sys.modules}) if heavy & {*sys.modules} else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_wide_columns_tell_what_slows_a_flow() -> None:
    columns = flow_columns(recent=False, exact=False, now=WALL, wide=True)[-5:]
    client = {"rtt": 0.0382, "retransmits": 117}
    row = {
        "legs": {"client": client, "endpoint": None},
        "stalled": {
            "original": {"blocked": 0.0, "held": 0.0},
            "reply": {"blocked": 71.5, "held": 0.0},
        },
        "slowed_by": "client",
    }
    unknown = {"legs": None, "stalled": None, "slowed_by": None}
    lines = table_lines(columns, [row, unknown], width=None)
    assert [click.unstyle(line).split() for line in lines] == [
        ["RTT", "RETRANS", "BLOCKED", "HELD", "SLOWED", "BY"],
        ["38.2ms/-", "117/-", "1m11s", "-", "client"],
        ["-", "-", "-", "-", "-"],
    ]


def test_wide_columns_tell_who_the_client_is() -> None:
    columns = flow_columns(recent=False, exact=False, now=WALL, wide=True)
    named = [column for column in columns if column.title in {"VIA", "SERVER NAME"}]
    via = {"local": "192.0.2.1:443", "remote": "10.0.0.2:4711"}
    rows = [
        {"server_name": "www.example.org", "client": {"via": via}},
        {"server_name": None, "client": {"via": None}},
    ]
    lines = table_lines(named, rows, width=None)
    assert [click.unstyle(line).split() for line in lines] == [
        ["VIA", "SERVER", "NAME"],
        ["10.0.0.2:4711", "www.example.org"],
        ["-", "-"],
    ]
    assert {"VIA", "SERVER NAME"}.isdisjoint(
        column.title for column in flow_columns(recent=True, exact=False, now=WALL)
    )
