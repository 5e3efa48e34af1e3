"""A successor that a predecessor has started, see ``upgrade``: what it gets, and what it says.

The environment names one descriptor, ``PREDECESSOR``: a wire to who started us. The first message
brings all descriptors, and their names. We say ``ready`` when everything is bound and our workers
are there; then, or never, we hear that we may ``go`` on, and say ``done`` when we have. The wire is
closed by who started us, once it lets nobody in by the admin's sockets any more: then we do. If we
fail we say why, so that who asked for it can be told.

Until we may go on the service manager is not to hear of us: it does not know us yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from socket import socket as Socket
from typing import TYPE_CHECKING, Any, Final

import trio

from proxy import __version__
from proxy.control.inherited import Inheritance, take
from proxy.control.notify import Notifier
from proxy.control.predecessor import Total
from proxy.engine.wire import Wire, WireError, wire_on

if TYPE_CHECKING:
    from proxy.control.predecessor import Report

PREDECESSOR: Final = "SOCKPAIR_PREDECESSOR"
"""The variable that names the descriptor."""

VERSION: Final = 1
"""Of what is said here."""

FIRST_WORD: Final = 10.0
"""Seconds for the first message, which is sent before we are started."""

GO: Final = 30.0
"""Seconds until we may go on: who started us has to wait for what is under way there."""

LAST_WORD: Final = 5.0
"""Seconds for who started us to let go of the admin's sockets."""


class UnwantedError(Exception):
    """Who started us is gone, or does not want us; or cannot be understood."""


class Newcomer:
    """What a process has that is started by its predecessor. Owns the wire.

    Args:
        wire: to that.
        bequest: its first message, read.
        files: the descriptors that came with it.

    Attributes:
        inheritance: all that we get.
        notifier: the line to the service manager; held until we may go on.

    """

    def __init__(self, wire: Wire, bequest: dict[str, Any], files: Sequence[int]) -> None:
        self._wire = wire
        self.inheritance = Inheritance(is_passed=True)
        for name, fd in zip(bequest["names"], files, strict=True):
            take(self.inheritance, fd, str(name))
        self.notifier = Notifier(str(bequest["notify"]), bequest["watchdog"], held=True)

    async def announce(self) -> None:
        """Say that we are ready, and wait until we may go on.

        Raises:
            UnwantedError: we may not.

        """
        try:
            with trio.fail_after(GO):
                await self._say({"ready": {"pid": os.getpid(), "program": __version__}})
                message = await self._wire.receive()
            if json.loads(message.body).get("go") is not True:
                raise UnwantedError(f"{message.body!r} was said, not that we may go on")
        except (WireError, ValueError, trio.TooSlowError) as error:
            raise UnwantedError("the process that started this one is gone") from error
        self.notifier.speak()

    async def tell_done(self, reports: Sequence[Report]) -> None:
        """Say that we have taken over, and what; return when the admin's sockets are ours alone."""
        with suppress(WireError), trio.move_on_after(LAST_WORD):
            await self._say({"done": Total.of(reports)._asdict()})
            await self._wire.receive()
        self._wire.close()

    def fail(self, *lines: str) -> None:
        """Say why we end. Not from within Trio."""
        trio.run(self._fail, lines)

    async def _fail(self, lines: Sequence[str]) -> None:
        with suppress(WireError):
            await self._say({"failed": list(lines)})
        self._wire.close()

    async def _say(self, words: dict[str, Any]) -> None:
        await self._wire.send(json.dumps(words).encode())


def arrive(environ: MutableMapping[str, str]) -> Newcomer | None:
    """Take what a predecessor gives; None if nobody has started us so. Not from within Trio.

    Raises:
        UnwantedError: the descriptor is no wire to a predecessor that we understand.

    """
    written = environ.pop(PREDECESSOR, "")
    if not written:
        return None
    try:
        os.set_inheritable(int(written), False)
        wire = wire_on(Socket(fileno=int(written)))
        return trio.run(_receive, wire)
    except (OSError, ValueError, KeyError, TypeError, WireError, trio.TooSlowError) as error:
        message = f'{PREDECESSOR}="{written}": no predecessor that can be understood: {error}'
        raise UnwantedError(f"{message}; unset it") from error


async def _receive(wire: Wire) -> Newcomer:
    with trio.fail_after(FIRST_WORD):
        message = await wire.receive()
    bequest = json.loads(message.body)
    if bequest["version"] != VERSION:
        raise ValueError(f"it speaks version {bequest['version']}, not {VERSION}")
    return Newcomer(wire, bequest, message.files)
