"""A service manager that is one socket: it hears what services say, and keeps what they store."""

from __future__ import annotations

import os
import select
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, recv_fds, socket

from tests.e2e.patience import PATIENCE


class Manager:
    """Hears a service; the descriptors it stored are ours, and closed at the end."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.address = str(folder / "notify") if name is None else f"@{name}"
        self.socket = socket(AF_UNIX, SOCK_DGRAM)
        self.socket.bind("\0" + name if name is not None else self.address)
        self.stored: dict[str, int] = {}

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        for fd in self.stored.values():
            os.close(fd)

    def hear(self) -> dict[str, str]:
        """Wait for the next message; do what it asks for."""
        said_something = select.poll()  # select(2) knows no descriptor beyond 1023
        said_something.register(self.socket, select.POLLIN)
        assert said_something.poll(PATIENCE * 1000), "nothing was said"
        data, files, _, _ = recv_fds(self.socket, 4096, 8)
        said = dict(line.split("=", 1) for line in data.decode().split("\n"))
        if "FDSTORE" in said:
            (self.stored[said["FDNAME"]],) = files
        elif "BARRIER" in said:
            os.close(files[0])
        elif "FDSTOREREMOVE" in said and said["FDNAME"] in self.stored:
            os.close(self.stored.pop(said["FDNAME"]))
        return said

    def hear_until(self, key: str) -> dict[str, str]:
        """The first message that has this key."""
        while key not in (said := self.hear()):
            pass
        return said
