"""What is wrong between the keys of health checks, and between them and their upstream.

Like all of ``whole`` it reads the raw document: what is wrong by itself is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias, get_args

from proxy.config.health import CheckKind
from proxy.config.problem import Path
from proxy.config.values import endpoint_texts

Fault: TypeAlias = tuple[Path, str]
Table: TypeAlias = dict[str, Any]

KINDS: Final = get_args(CheckKind)

TALKING: Final = ("tcp", "udp")

ONLY: Final = {
    "send": TALKING,
    "send_hex": TALKING,
    "expect": TALKING,
    "expect_hex": TALKING,
    "expect_regex": TALKING,
    "path": ("http",),
    "host": ("http",),
    "status": ("http",),
    "command": ("command",),
    "port": ("tcp", "udp", "http", "command"),
}
"""The kinds of check that a key has an effect on."""

ONE_OF: Final = (("send", "send_hex"), ("expect", "expect_hex", "expect_regex"))


def health_faults(name: str, upstream: Table) -> Iterator[Fault]:
    """Check the checks of an upstream.

    Args:
        name: of the upstream.
        upstream: its table.

    """
    health = upstream.get("health")
    if not isinstance(health, dict):
        return
    path = ("upstream", name, "health")
    kind = health.get("check", "off")
    if kind == "off" or kind not in KINDS:
        return  # the keys of what is off may stay for the day when it is on again
    for key, kinds in ONLY.items():
        if key in health and kind not in kinds:
            where = " and ".join(f'"{each}"' for each in kinds)
            yield (*path, key), f'has no effect where check is "{kind}", only on {where}; remove it'
    if kind == "command" and "command" not in health:
        yield (*path, "check"), 'needs a command, such as command = ["/usr/local/bin/check"]'
    for keys in ONE_OF:
        for second in [key for key in keys if key in health][1:]:
            yield (*path, second), f"says the same as {keys[0]} in another way; keep one of them"
    yield from _endpoints_elsewhere(path, kind, upstream)


def _endpoints_elsewhere(path: Path, kind: str, upstream: Table) -> Iterator[Fault]:
    """Endpoints that a check of this kind cannot reach."""
    for text in endpoint_texts(upstream.get("endpoints")):
        if text == "original":
            yield (*path, "check"), "cannot check original destinations; remove the table"
        elif isinstance(text, str) and kind != "command":
            wrong = "unixgram://" if kind in {"tcp", "http"} else "unix"
            if text.startswith(wrong):
                yield (*path, "check"), f'cannot check "{text}"; use a command'
