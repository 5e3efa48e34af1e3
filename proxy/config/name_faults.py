"""What is wrong between the keys about names; each may be right by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from proxy.config.problem import Path
from proxy.config.values import parse_timeout

TTL_MIN_DEFAULT: Final = "5s"
TTL_MAX_DEFAULT: Final = "5m"


def names_faults(names: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Check the table as a whole.

    Args:
        names: as the TOML parser gave it.

    """
    texts = names.get("ttl_min", TTL_MIN_DEFAULT), names.get("ttl_max", TTL_MAX_DEFAULT)
    try:
        least, most = (parse_timeout(text) for text in texts)
    except (ValueError, TypeError, AttributeError):
        return  # which the keys say themselves
    if least > most:
        where = "ttl_min" if "ttl_min" in names else "ttl_max"
        message = f'ttl_min, "{texts[0]}", is more than ttl_max, "{texts[1]}"; change one of them'
        yield ("names", where), message
