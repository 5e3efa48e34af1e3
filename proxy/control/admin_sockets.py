"""The sockets of the admin: bound, or taken over from a predecessor, and who may change something.

A predecessor that starts us gives us its own, so that no request is refused meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.control.inherited import ADMIN_HTTP, ADMIN_SOCKET
from proxy.control.listen import BindError, bind_admin_http, bind_admin_socket
from proxy.control.unix import user_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack
    from socket import socket as Socket

    from proxy.config.model import Admin
    from proxy.core.address import HostPort


def open_admin(admin: Admin, given: Mapping[str, Socket], undo: ExitStack) -> list[Socket]:
    """Have the admin's sockets: those that a predecessor gives, if they are where they shall be.

    Args:
        admin: where that is.
        given: by a predecessor, by their names; those that are not wanted are closed.
        undo: closes all of them, if that is to be.

    Raises:
        BindError: one could not be bound.

    """
    opened: list[Socket] = []
    for socket in given.values():
        undo.enter_context(socket)
    if admin.socket:
        found = given.get(ADMIN_SOCKET)
        if found is None or found.getsockname() != admin.socket:
            found = bind_admin_socket(admin.socket, admin.mode, admin.group)
            undo.enter_context(found)
            undo.callback(Path(admin.socket).unlink, missing_ok=True)
        opened.append(found)
    if admin.http is not None:
        found = given.get(ADMIN_HTTP)
        if found is None or not _is_at(found, admin.http):
            found = undo.enter_context(bind_admin_http(admin.http))
        opened.append(found)
    for socket in given.values():
        if socket not in opened:
            socket.close()
    return opened


def _is_at(socket: Socket, address: HostPort) -> bool:
    host = "127.0.0.1" if address.host == "localhost" else address.host
    return bool(socket.getsockname()[:2] == (host, address.port))


def admin_users(admin: Admin) -> frozenset[int] | None:
    """Who may change something at the Unix socket; None: whoever may open it.

    Root may do anything, and our own user end us, so that nothing is gained by keeping them out.
    """
    if not admin.users:
        return None
    try:
        return user_numbers(admin.users) | {0, os.getuid()}
    except OSError as error:
        names = ", ".join(admin.users)
        raise BindError("admin.users", names, error, "cannot admit") from error
