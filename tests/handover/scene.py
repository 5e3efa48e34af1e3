"""sockpair, in front of a crowd: one listener for each group of flows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.e2e.subject import Forward
from tests.handover.crowd import HOST, Place
from tests.handover.kinds import DATAGRAMS, STREAMS

LASTING = {"idle": "1h", "unreplied": "1h"}
"""Of datagrams: no flow ends by itself while it is looked at."""


@dataclass(frozen=True)
class GroupForward(Forward):
    """A listener with keys of its own."""

    keys: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def toml(self) -> str:
        head, limits, rest = super().toml.partition(f"[listener.{self.name}.limits.per_flow]\n")
        keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.keys.items())
        return head + keys + limits + rest


def forwards(groups: Mapping[str, Place], survive: str | None = None) -> list[Forward]:
    """Listeners for all groups.

    Args:
        groups: by name.
        survive: what their flows live on through; None for the default.

    """
    keys: dict[str, str | int] = {} if survive is None else {"survive": survive}
    made: list[Forward] = []
    for name, place in groups.items():
        endpoints = [f"{HOST}:{place['endpoint']}"]
        port, kind = place["listener"], place["kind"]
        if kind in STREAMS:
            limits = STREAMS[kind].limits
            made.append(GroupForward(name, "tcp", endpoints, limits=limits, port=port, keys=keys))
        else:
            keys = keys | {"receive_buffer": "4MiB"}
            limits = LASTING
            if DATAGRAMS[kind].fresh:
                keys = keys | {"responses": 1}
            made.append(GroupForward(name, "udp", endpoints, limits=limits, port=port, keys=keys))
    return made
