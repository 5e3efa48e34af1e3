"""What the file says of active health checks: how the endpoints of an upstream are asked."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from proxy.config.keys import Table, key
from proxy.config.problem import shown
from proxy.config.values import Timeout, as_array, written

BYTES_MAX: Final = 4096
"""Bytes that a check sends, or expects; a probe is short."""

PATTERN_MAX: Final = 300
"""Characters of a regular expression."""

STATUSES_MAX: Final = 20
ARGUMENTS_MAX: Final = 100

STATUS_PATTERN: Final = "^[1-5][0-9][0-9](-[1-5][0-9][0-9])?$"

CheckKind: TypeAlias = Literal["off", "tcp", "http", "udp", "command"]


def parse_text(text: str) -> bytes:
    """Read what is sent as it stands, in UTF-8; for line ends TOML has escapes."""
    return text.encode()


def parse_hex(text: str) -> bytes:
    """Read bytes in hexadecimal, ``"00 01 ff"``.

    Raises:
        ValueError: they are not.

    """
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError(f'"{text}" is not bytes in hexadecimal, such as "00 01 ff"') from None


def parse_pattern(text: str) -> re.Pattern[bytes]:
    r"""Read a regular expression, which is looked for in bytes: ``"^\\+PONG"``.

    Raises:
        ValueError: it is none.

    """
    try:
        return re.compile(text.encode(), re.DOTALL)
    except re.error as error:
        raise ValueError(f'"{text}" is not a regular expression: {error}') from None


def parse_statuses(text: str) -> range:
    """Read ``"200"`` or ``"200-399"``.

    Raises:
        ValueError: it is neither.

    """
    if not re.fullmatch(STATUS_PATTERN, text):
        raise ValueError(f'"{text}" is not the status of an answer: expected "200" or "200-399"')
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found:
        raise ValueError(f'"{text}" ends before it begins')
    return found


def parse_path(text: str) -> str:
    """Read the path of a request, with its query.

    Raises:
        ValueError: it does not begin with a slash, or has what no request may have.

    """
    if not (text.startswith("/") and text.isascii() and text.isprintable() and " " not in text):
        raise ValueError(f'"{text}" is not a path such as "/health"')
    return text


def _argument(value: object) -> str:
    if not (isinstance(value, str) and value and "\0" not in value):
        raise ValueError(f"expected text, found {shown(value)}")
    return value


def _host(text: str) -> str:
    if not (text and text.isascii() and text.isprintable() and " " not in text):
        raise ValueError(f'"{text}" is not a host, such as "web.example"')
    return text


def _limited(parse: Any, expected: str) -> tuple[Any, ...]:
    """As ``written``, for texts that may be longer."""

    def read(value: object) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"expected {expected}, found {shown(value)}")
        if len(value) > BYTES_MAX:
            raise ValueError(f"expected at most {BYTES_MAX} characters, found {len(value)}")
        return parse(value)

    return PlainValidator(read), WithJsonSchema({"type": "string", "maxLength": BYTES_MAX})


Text: TypeAlias = Annotated[bytes, *_limited(parse_text, "text")]
Hexadecimal: TypeAlias = Annotated[bytes, *_limited(parse_hex, 'bytes such as "00 01 ff"')]

Expression: TypeAlias = Annotated[
    re.Pattern[bytes],
    *written(parse_pattern, "a regular expression", maxLength=PATTERN_MAX),
]

Statuses: TypeAlias = Annotated[
    tuple[
        Annotated[range, *written(parse_statuses, 'text such as "200"', pattern=STATUS_PATTERN)],
        ...,
    ],
    BeforeValidator(as_array),
    Field(min_length=1, max_length=STATUSES_MAX),
]

HttpPath: TypeAlias = Annotated[str, *written(parse_path, "a path", pattern="^/.*$")]
HttpHost: TypeAlias = Annotated[str, *written(_host, "a host", minLength=1)]

Arguments: TypeAlias = Annotated[
    tuple[
        Annotated[str, PlainValidator(_argument), WithJsonSchema({"type": "string"})],
        ...,
    ],
    BeforeValidator(as_array),
    Field(min_length=1, max_length=ARGUMENTS_MAX),
]


class Health(Table):
    """Active checks of an upstream's endpoints, each address by itself."""

    check: CheckKind = key(
        "off",
        '"tcp" connects, "http" gets a path, "udp" sends a datagram, "command" runs one; "off".',
    )
    interval: Timeout = key("5s", "From one check to the next, a tenth more or less.")
    timeout: Timeout = key("2s", "How long a check may take; then it has failed.")
    rise: int = key(2, "Checks in a row that must pass until who was down is up.", ge=1, le=1000)
    fall: int = key(3, "Checks in a row that must fail until who was up is down.", ge=1, le=1000)
    port: int | None = key(
        None, "Port to check. Default: the endpoint's own.", example=8081, ge=1, le=65535
    )
    send: Text | None = key(None, "Text to send. tcp, udp. Default: nothing.", example="PING\r\n")
    send_hex: Hexadecimal | None = key(
        None, "Bytes to send, in place of a text. tcp, udp. Default: nothing.", example="00 01 ff"
    )
    expect: Text | None = key(
        None, "Text that the answer must have. tcp, udp. Default: any.", example="+PONG"
    )
    expect_hex: Hexadecimal | None = key(
        None, "Bytes that the answer must have. tcp, udp. Default: any.", example="00 81"
    )
    expect_regex: Expression | None = key(
        None,
        "Regular expression that must be found in the answer. tcp, udp. Default: any.",
        example="^\\+PONG",
    )
    path: HttpPath = key("/", "What to get. http.")
    host: HttpHost | None = key(
        None, "Host header. http. Default: the endpoint's address.", example="web.example"
    )
    status: Statuses = key(["200-399"], "Statuses that are well. http.")
    command: Arguments | None = key(
        None,
        "What to run, with its arguments; exit status 0 is well. command. Default: none.",
        example=["/usr/local/bin/check", "--fast"],
    )
