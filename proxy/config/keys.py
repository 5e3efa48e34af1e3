"""How a key of the file is declared, and what every table of it is.

The tables themselves are in ``model``, and in ``upstream`` what upstreams are made of.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from proxy.config import whole
from proxy.config.packets import MARK_MAX, PRIORITY_MAX
from proxy.core.address import Transport

REQUIRED: Final[Any] = ...


def key(
    default: Any,
    about: str,
    *,
    example: Any = None,
    only: Collection[Transport] = (),
    **bounds: Any,
) -> Any:
    """Declare a key.

    Args:
        default: as it would be written in the file; None for "not set"; or ``REQUIRED``.
        about: what it does, for the JSON Schema.
        example: for keys without a default.
        only: the transports on whose listeners the key has an effect, if not on all.
        bounds: as ``pydantic.Field`` takes them.

    """
    return Field(
        default,
        description=about,
        examples=None if example is None else [example],
        json_schema_extra={whole.ONLY: [each.value for each in only]} if only else None,
        validate_default=default is not None,
        **bounds,
    )


class Table(BaseModel):
    """A table of the file: nothing is converted in silence, nothing unknown is ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


MARK_KEY: Final = key(
    None,
    "Mark of packets, for routing and nft (SO_MARK). Default: none.",
    example=7,
    ge=0,
    le=MARK_MAX,
)
DSCP_KEY: Final = key(
    None,
    'DSCP of packets that are sent: 0 to 63, or a name such as "ef" or "af41". Default: none.',
    example="ef",
)
PRIORITY_KEY: Final = key(
    None,
    "Priority of packets in the queues of this host (SO_PRIORITY); above 6 with CAP_NET_ADMIN. "
    "Default: the kernel's.",
    example=6,
    ge=0,
    le=PRIORITY_MAX,
)
INTERFACE_KEY: Final = key(
    None,
    "The one network interface to use (SO_BINDTODEVICE). Default: routing decides.",
    example="eth1",
)
