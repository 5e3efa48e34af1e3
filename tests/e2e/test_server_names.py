"""One port for several TLS servers: real clients get where they want, and TLS is not ended."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import PATIENCE
from tests.e2e.peers import HOST
from tests.e2e.program import free_port, output_of, peer
from tests.e2e.subject import Forward, Row, Sockpair
from tests.e2e.test_commands import ask
from tests.e2e.test_identity import Known, folder_of, haproxy, nginx

NAMES = ("one", "two", "others")


@dataclass(frozen=True)
class Routed(Forward):
    """A forward with routes to further upstreams, each of one endpoint."""

    routes: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    keys: str = ""  # of those upstreams

    @property
    def toml(self) -> str:
        routes = "".join(
            f"{json.dumps(name)} = {json.dumps(to)}\n" for name, to in self.routes.items()
        )
        others = "".join(
            f"[upstream.{name}]\nendpoints = [{json.dumps(endpoint)}]\n{self.keys}"
            for name, endpoint in self.others.items()
        )
        plain = Known(self.name, "tcp", self.endpoints, port=self.port).toml
        return f"{plain}[listener.{self.name}.routes]\n{routes}{others}"


async def make_certificate(folder: Path) -> None:
    """Files ``key`` and ``cert``."""
    await output_of(
        *(peer("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
        *("-subj", "/CN=example.org", "-keyout", folder / "key", "-out", folder / "cert"),
    )


@asynccontextmanager
async def tls_servers(folder: Path) -> AsyncIterator[dict[str, str]]:
    """nginx with three servers that say who they are, and which name they were asked for."""
    await make_certificate(folder)
    ports = {name: free_port() for name in NAMES}
    servers = "".join(
        f"server {{ listen {HOST}:{port} ssl http2; ssl_certificate {folder}/cert;"
        f" ssl_certificate_key {folder}/key; ssl_protocols TLSv1.2 TLSv1.3;"
        f' location / {{ return 200 "{name} $ssl_server_name $ssl_session_reused"; }} }}'
        for name, port in ports.items()
    )
    async with nginx(folder, f"http {{ server {{ listen {HOST}:PORT; }} {servers} }}"):
        yield {name: f"{HOST}:{port}" for name, port in ports.items()}


@asynccontextmanager
async def routed(stage: Stage, workers: int = 1) -> AsyncIterator[tuple[Sockpair, Routed]]:
    async with tls_servers(folder_of(stage, "tls")) as servers:
        web = Routed(
            "web",
            "tcp",
            [servers["others"]],
            routes={"one.example": "one", "*.two.example": "two"},
            others={name: servers[name] for name in ("one", "two")},
        )
        yield await stage.sockpair(web, workers=workers), web


async def last(sockpair: Sockpair) -> Row:
    rows = (await sockpair.books("web")).rows
    return rows[-1]


CASES = [
    ("one.example", "one", "one"),
    ("ONE.example", "one", "one"),
    ("a.two.example", "two", "two"),
    ("two.example", "others", "web"),
    ("b.a.two.example", "others", "web"),
]


@pytest.mark.peers("nginx", "curl", "openssl")
async def test_curl(stage: Stage) -> None:
    async with routed(stage) as (sockpair, web):
        for name, server, upstream in CASES:
            said = await output_of(
                *(peer("curl"), "--silent", "--fail", "--noproxy", "*", "--insecure"),
                *("--resolve", f"{name}:{web.port}:{HOST}", f"https://{name}:{web.port}/"),
            )
            assert said.split()[:2] == [server, name.lower()]
            row = await last(sockpair)
            assert (row["server_name"], row["upstream"]) == (name.lower(), upstream)
            assert row["alpn"] == ["h2", "http/1.1"]
            assert row["close_reason"] in {"finished", "client_reset"}
        assert "one.example" not in await sockpair.get("/metrics")


@pytest.mark.peers("nginx", "curl", "openssl")
async def test_flows_are_found_by_server_name(stage: Stage) -> None:
    async with routed(stage, workers=2) as (sockpair, web):
        for name, *_ in CASES:
            await output_of(
                *(peer("curl"), "--silent", "--fail", "--noproxy", "*", "--insecure"),
                *("--resolve", f"{name}:{web.port}:{HOST}", f"https://{name}:{web.port}/"),
            )
        await sockpair.books("web", flows=len(CASES))
        for asked, count in (("One.example.", 2), ("*.two.example", 1), (".two.example", 2)):
            text = await ask(sockpair, "flows", "--recent", "--server-name", asked, "-o", "json")
            assert len(json.loads(text)) == count
        assert "a.two.example" in await ask(sockpair, "flows", "--recent", "-w")


@pytest.mark.peers("nginx", "openssl")
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
async def test_openssl(stage: Stage, version: str) -> None:
    """With so many protocols that its ClientHello takes several segments."""
    protocols = ",".join([*(f"protocol-{number:0240}" for number in range(20)), "http/1.1"])
    async with routed(stage) as (sockpair, web):
        for name, _, upstream in CASES:
            await output_of(
                *(peer("openssl"), "s_client", "-connect", web.text, f"-{version}"),
                *("-servername", name, "-alpn", protocols),
            )
            row = await last(sockpair)
            assert (row["server_name"], row["upstream"]) == (name.lower(), upstream)
            assert row["original"]["bytes"] > 5000
            assert len(row["alpn"]) == 1
        await output_of(peer("openssl"), "s_client", "-connect", web.text, "-noservername")
        row = await last(sockpair)
        assert (row["server_name"], row["upstream"]) == (None, "web")


@pytest.mark.peers("nginx", "openssl")
@pytest.mark.parametrize("workers", [1, 2])
async def test_python(stage: Stage, workers: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with routed(stage, workers) as (sockpair, web):
        stream = await trio.open_tcp_stream(*web.address)
        tls = trio.SSLStream(
            stream, context, server_hostname="x.two.example", https_compatible=True
        )
        with trio.fail_after(PATIENCE):
            await tls.send_all(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join([chunk async for chunk in tls])
        assert answer.endswith(b"two x.two.example .")
        await tls.aclose()
        row = await last(sockpair)
        assert (row["server_name"], row["alpn"]) == ("x.two.example", [])


TOLD = """bind 127.0.0.1:PORT accept-proxy ssl crt FOLDER/both
http-request return content-type text/plain lf-string "%[fc_pp_authority] %[ssl_fc_sni] %[src_port]"
"""


@pytest.mark.peers("haproxy", "openssl", "curl")
async def test_a_real_server_is_told_the_name_in_its_header(stage: Stage) -> None:
    folder = folder_of(stage, "haproxy")
    await make_certificate(folder)
    (folder / "both").write_text((folder / "cert").read_text() + (folder / "key").read_text())
    async with haproxy(folder, TOLD.replace("FOLDER", str(folder)), "http") as endpoint:
        web = Routed(
            "web",
            "tcp",
            [endpoint],
            routes={".example": "named"},
            others={"named": endpoint},
            keys='send_proxy = "v2"\nsend_proxy_crc32c = true\n',
        )
        await stage.sockpair(web)
        said = await output_of(
            *(peer("curl"), "--silent", "--fail", "--noproxy", "*", "--insecure"),
            *("--write-out", " %{local_port}", "--resolve", f"www.example:{web.port}:{HOST}"),
            f"https://www.example:{web.port}/",
        )
        authority, server_name, port, local_port = said.split()
        assert authority == server_name == "www.example"
        assert port == local_port


@pytest.mark.peers("nginx", "openssl", "curl")
async def test_what_is_not_tls(stage: Stage) -> None:
    async with routed(stage) as (sockpair, web):
        said = await output_of(
            *(peer("curl"), "--silent", "--noproxy", "*", f"http://{web.text}/"),
        )
        assert "400 The plain HTTP request was sent to HTTPS port" in said
        row = await last(sockpair)
        assert (row["server_name"], row["alpn"], row["upstream"]) == (None, None, "web")
