"""``sockpair disable`` and ``sockpair enable``: keep an endpoint away from new flows, or not."""

from __future__ import annotations

import click

from proxy.cli import completion
from proxy.cli.client import AdminClient, admin_option
from proxy.cli.completion import upstream_option
from proxy.core.printable import printable


@click.command()
@click.argument("endpoint", metavar="HOST:PORT", shell_complete=completion.ENDPOINTS)
@upstream_option
@admin_option
def disable(admin: str, endpoint: str, upstream: str | None) -> None:
    """Give an endpoint no new flows until "sockpair enable"; those it has live on.

    It stays so over reloads, until sockpair ends.
    """
    _order(admin, "disable", endpoint, upstream)


@click.command()
@click.argument("endpoint", metavar="HOST:PORT", shell_complete=completion.ENDPOINTS)
@upstream_option
@admin_option
def enable(admin: str, endpoint: str, upstream: str | None) -> None:
    """Give an endpoint new flows again that was disabled, or drained."""
    _order(admin, "enable", endpoint, upstream)


def _order(admin: str, order: str, endpoint: str, upstream: str | None) -> None:
    params = {"endpoint": endpoint, "upstream": upstream}
    for done in AdminClient(admin).post(f"/api/v1/{order}", params)["endpoints"]:
        click.echo(f"{order}d {printable(done['endpoint'])} of upstream {done['upstream']}")
