"""Whom the admin believes: which names may be its own, and which users may change something.

By TCP one can only read, so what has to be kept out there is a page of a stranger in the browser of
somebody who can reach the admin. It cannot read an answer from another origin, unless it calls
that origin by a name of its own (DNS rebinding): so the ``Host`` header is an IP address,
``localhost``, or a name that the configuration knows. And a browser says where a request comes from
(Fetch Metadata, W3C): what a stranger's page fetches is refused before it costs anything; a link
that somebody follows is not.

On the Unix socket the permissions of its file say who may connect. Who may change something can be
narrowed to some users, by the credentials that the kernel tells of the other end: the file may then
be open to more, who can only read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

FOREIGN: Final = frozenset({"cross-site", "same-site"})
"""What ``Sec-Fetch-Site`` says of a page that is not one of ours; same-site: of another port."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe.

    Attributes:
        hosts: names, in lower case, that may stand in ``Host`` beside addresses and ``localhost``.
        users: the numbers of those who may change something; None: whoever may open the socket.

    """

    hosts: frozenset[str] = frozenset()
    users: frozenset[int] | None = None

    def may_change(self, uid: int) -> bool:
        """Whether a user at the Unix socket may change something."""
        return self.users is None or uid in self.users

    def objection(self, headers: Mapping[str, str]) -> str | None:
        """Why a request by TCP is not answered; None if it is. HTTP/1.0 may have no host."""
        host = headers.get("host")
        if host is not None and not self._is_own_host(host):
            use = "use an IP address or localhost, or name it in admin.hosts"
            return f'Host "{host}" is not served: {use}'
        if _is_of_another_page(headers):
            return "what a page of another origin asks for is not answered"
        return None

    def _is_own_host(self, host: str) -> bool:
        name = host if host.endswith("]") or ":" not in host else host.rpartition(":")[0]
        return name.lower() in {"localhost", *self.hosts} or _is_address(name)


def _is_of_another_page(headers: Mapping[str, str]) -> bool:
    """Whether a page asks that is not ours, by what its browser says; old ones tell the origin."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in FOREIGN and headers.get("sec-fetch-mode") != "navigate"
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
