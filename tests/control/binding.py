"""The sockets of all listeners of a configuration, bound as a house binds them."""

from __future__ import annotations

from contextlib import ExitStack
from socket import socket as Socket

from proxy.config.model import Config
from proxy.control.sockets import arrange


def bind_listeners(config: Config) -> dict[str, Socket]:
    """Bind one socket for every listener; the caller owns them."""
    return {name: socket for name, (socket,) in bind_for_workers(config, 1).items()}


def bind_for_workers(config: Config, workers: int) -> dict[str, list[Socket]]:
    """Bind as many for each as workers share it; the caller owns them."""
    with ExitStack() as undo:
        arranged = arrange(config.listener, {}, [], undo, workers)
        undo.pop_all()
    return {name: list(each.sockets) for name, each in arranged.bound.items()}
