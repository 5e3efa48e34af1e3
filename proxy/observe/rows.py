"""Rows as JSON, quickly: a busy relay writes thousands in a second, in the thread that relays.

pydantic's encoder is four times as fast as the standard library's, and writes the same but for
characters beyond ASCII, which it leaves as they are. It refuses lone surrogates (a path that is not
UTF-8 has them); the standard library escapes those.
"""

from __future__ import annotations

import json

from pydantic_core import PydanticSerializationError, to_json


def encode(value: object) -> bytes:
    """Write plain values as one line of JSON, without its line feed."""
    try:
        return to_json(value)
    except PydanticSerializationError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")
