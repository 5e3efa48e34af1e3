"""Stream flows of clients at Unix sockets, of which the kernel tells who they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.engine.stream import StreamFlow

if TYPE_CHECKING:
    from proxy.core.unix import Credentials


class UnixFlow(StreamFlow):
    """A stream flow whose client has connected to a Unix socket."""

    __slots__ = ("credentials",)

    tells_more = True

    credentials: Credentials | None
