"""The page: live flows, listeners and upstreams in a browser, from the files in ``assets``.

Plain HTML, CSS and JavaScript, as they are written: there is no build step. The page asks nothing
but this server (its Content-Security-Policy forbids the rest), and runs no script and no style that
is not one of its files, so that even text from the network which became markup could do nothing.

The files are read once, at the start: they are small, and an upgrade under way cannot mix two
versions of them.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Final

from proxy.observe.http import Response

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

CONTENT_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

PAGE_HEADERS: Final = (
    ("Content-Security-Policy", POLICY),
    ("Referrer-Policy", "no-referrer"),
)

INDEX: Final = "index.html"


def read_assets() -> dict[str, Response]:
    """Every file of the page, by its name, as it is answered."""
    return {each.name: _asset(each) for each in files("proxy.observe").joinpath("assets").iterdir()}


def wants_page(accept: str) -> bool:
    """Whether who asks is a browser: it names HTML, which programs do not."""
    return "text/html" in accept


def _asset(file: Traversable) -> Response:
    ending = file.name.rpartition(".")[2]
    return Response(file.read_bytes(), CONTENT_TYPES[ending], headers=PAGE_HEADERS)
