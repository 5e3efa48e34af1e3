"""Who the client is, told by real proxies to sockpair, and by sockpair to real servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.peers import HOST
from tests.e2e.program import accepts, free_port, output_of, peer, program
from tests.e2e.subject import Forward, Row, Sockpair

STREAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

TRUSTED: Final = 'proxy_from = ["127.0.0.0/8"]\n'


@dataclass(frozen=True)
class Known(Forward):
    """A forward with more keys of its listener and of its upstream."""

    listener: str = ""
    upstream: str = ""

    @property
    def toml(self) -> str:
        return (
            f'[listener.{self.name}]\nlisten = "{self.transport}://{self.text}"\n'
            f'upstream = "{self.name}"\n'
            f"{self.listener}\n"
            f"[upstream.{self.name}]\nendpoints = {json.dumps(list(self.endpoints))}\n"
            f"{self.upstream}\n"
        )


HAPROXY: Final = """
global
    log stderr format raw local0
defaults
    mode {mode}
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen tested
"""


@asynccontextmanager
async def haproxy(folder: Path, lines: str, mode: str = "tcp") -> AsyncIterator[str]:
    """HAProxy with these lines, in which PORT is the one it listens on; ``host:port``."""
    port = free_port()
    file = folder / "haproxy.cfg"
    body = "".join(f"    {line}\n" for line in lines.replace("PORT", str(port)).splitlines())
    file.write_text(HAPROXY.format(mode=mode) + body)
    command = [peer("haproxy"), "-db", "-f", file]
    async with program(command, folder, accepts(port), name="haproxy"):
        yield f"{HOST}:{port}"


@asynccontextmanager
async def nginx(folder: Path, body: str) -> AsyncIterator[str]:
    """The same of nginx."""
    port = free_port()
    module = f"load_module {STREAM_MODULE};" if "stream" in body else ""
    temp = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    body = body.replace("PORT", str(port)).replace("http {", f"http {{ {temp} access_log off;")
    file = folder / "nginx.conf"
    file.write_text(
        f"{module} daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{ worker_connections 64; }}\n{body}\n"
    )
    command = [peer("nginx"), "-p", folder, "-e", "stderr", "-c", file]
    async with program(command, folder, accepts(port), name="nginx"):
        yield f"{HOST}:{port}"


RECEIVERS: Final = {
    "haproxy": """bind 127.0.0.1:PORT accept-proxy
http-request return content-type text/plain lf-string "%[src]:%[src_port] %[dst]:%[dst_port]"
""",
    "nginx": """http { server { listen 127.0.0.1:PORT proxy_protocol; location / {
        set $client "$proxy_protocol_addr:$proxy_protocol_port";
        return 200 "$client $proxy_protocol_server_addr:$proxy_protocol_server_port";
    } } }""",
}

SENDERS: Final = {
    "haproxy v1": "server sockpair TARGET send-proxy",
    "haproxy v2": "server sockpair TARGET send-proxy-v2",
    "haproxy v2 crc32c": """unique-id-format abc-%[rand]
server sockpair TARGET send-proxy-v2 proxy-v2-options crc32c,unique-id""",
    "nginx v1": """stream { server {
        listen 127.0.0.1:PORT; proxy_pass TARGET; proxy_protocol on;
    } }""",
}


@asynccontextmanager
async def receiver(kind: str, folder: Path) -> AsyncIterator[str]:
    lines = RECEIVERS[kind]
    async with (
        haproxy(folder, lines, "http") if kind == "haproxy" else nginx(folder, lines) as text
    ):
        yield text


@asynccontextmanager
async def sender(kind: str, folder: Path, target: str) -> AsyncIterator[str]:
    lines = SENDERS[kind].replace("TARGET", target)
    start = (
        nginx(folder, lines)
        if kind.startswith("nginx")
        else haproxy(folder, f"bind 127.0.0.1:PORT\n{lines}")
    )
    async with start as text:
        yield text


async def curl(address: str, *options: str) -> tuple[str, str]:
    """Ask once; what was answered, and the client's own address."""
    said = await output_of(
        *(peer("curl"), "--silent", "--fail", "--noproxy", "*", *options),
        *("--write-out", "\n%{local_ip}:%{local_port}", f"http://{address}/"),
    )
    answer, _, local = said.rpartition("\n")
    return answer.strip(), local


def folder_of(stage: Stage, name: str) -> Path:
    folder = stage.folder / name
    folder.mkdir()
    return folder


async def ended(sockpair: Sockpair, name: str) -> Row:
    """The one flow that carried anything: a front is looked at when it starts."""
    rows = (await sockpair.books(name)).rows
    (row,) = [row for row in rows if row["original"]["bytes"]]
    return row


@pytest.mark.peers("haproxy", "nginx", "curl")
@pytest.mark.parametrize("kind", RECEIVERS)
@pytest.mark.parametrize("style", ["v1", "v2", "v2 crc32c"])
async def test_a_real_server_is_told_the_client(stage: Stage, kind: str, style: str) -> None:
    keys = f'send_proxy = "{style[:2]}"\nsend_proxy_crc32c = {json.dumps("crc32c" in style)}\n'
    async with receiver(kind, folder_of(stage, kind)) as endpoint:
        web = Known("web", "tcp", [endpoint], upstream=keys)
        sockpair = await stage.sockpair(web)
        answer, local = await curl(web.text)
        assert answer == f"{local} {web.text}"
        row = await ended(sockpair, "web")
        assert (row["client"]["remote"], row["client"]["via"]) == (local, None)


@pytest.mark.peers("haproxy", "nginx", "curl")
@pytest.mark.parametrize("kind", SENDERS)
async def test_a_real_proxy_tells_the_client(stage: Stage, kind: str) -> None:
    async with receiver("nginx", folder_of(stage, "receiver")) as endpoint:
        web = Known("web", "tcp", [endpoint], listener=TRUSTED, upstream='send_proxy = "v2"')
        sockpair = await stage.sockpair(web)
        async with sender(kind, folder_of(stage, "sender"), web.text) as front:
            answer, local = await curl(front)
            row = await ended(sockpair, "web")
    assert answer == f"{local} {front}"
    assert (row["client"]["remote"], row["client"]["local"]) == (local, front)
    assert row["client"]["via"]["local"] == web.text
    names = [tlv["name"] for tlv in row["tlvs"]]
    assert names == (["unique_id"] if "crc32c" in kind else [])
    assert (row["close_reason"], row["source"]) == ("finished", "127.0.0.1/32")


@pytest.mark.peers("nginx", "curl")
@pytest.mark.parametrize("workers", [1, 2])
async def test_curl_tells_the_client(stage: Stage, workers: int) -> None:
    async with receiver("nginx", folder_of(stage, "receiver")) as endpoint:
        web = Known("web", "tcp", [endpoint], listener=TRUSTED, upstream='send_proxy = "v1"')
        sockpair = await stage.sockpair(web, workers=workers)
        answer, local = await curl(web.text, "--haproxy-protocol")
        row = await ended(sockpair, "web")
    assert answer == f"{local} {web.text}"
    assert row["client"]["remote"] == row["client"]["via"]["remote"] == local


@pytest.mark.peers("haproxy", "nginx", "curl")
async def test_checks_of_a_real_proxy_are_accepted(stage: Stage) -> None:
    lines = "bind 127.0.0.1:PORT\nserver sockpair TARGET send-proxy-v2 check inter 50ms\n"
    async with receiver("nginx", folder_of(stage, "receiver")) as endpoint:
        web = Known("web", "tcp", [endpoint], listener=TRUSTED, upstream='send_proxy = "v2"')
        sockpair = await stage.sockpair(web)
        async with haproxy(folder_of(stage, "sender"), lines.replace("TARGET", web.text)) as front:

            async def checked() -> bool:
                rows = await sockpair.flows(recent="true", listener="web")
                return len([row for row in rows if row["client"]["via"]]) > 1

            await until(checked, "two checks")
            answer, local = await curl(front)
        assert answer == f"{local} {front}"
    metrics = await sockpair.metrics()
    refused = metrics.sum("sockpair_flows_refused_total", listener="web", reason="bad_header")
    assert refused == 0


@pytest.mark.peers("curl")
async def test_who_sends_no_header_is_told_of(stage: Stage) -> None:
    web = Known("web", "tcp", ["127.0.0.1:1"], listener=TRUSTED)
    sockpair = await stage.sockpair(web)
    await output_of(
        *(peer("curl"), "--silent", "--noproxy", "*", f"http://{web.text}/"),
        status=56,  # CURLE_RECV_ERROR
    )
    await until(lambda: bool(sockpair.log_records("bad_header")), "the log to tell of it")
    (record,) = sockpair.log_records("bad_header")
    assert (record["listener"], record["reason"]) == ("web", "no_header")
    metrics = await sockpair.metrics()
    refused = metrics.sum("sockpair_flows_refused_total", listener="web", reason="bad_header")
    assert refused == 1
