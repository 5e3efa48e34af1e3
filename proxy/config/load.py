"""From a file to a configuration, or to every problem it has.

``load`` and ``parse`` return a legal ``Config`` or raise ``ConfigError``, whatever the file is:
missing, a directory, a pipe that nobody writes to, binary, endless, nested too deep. Nothing else
is raised and nothing blocks for ever. What is legal and yet hardly meant goes to ``warn``.

Three stages, each of which needs the one before: the bytes (a file or pipe, bounded, UTF-8), the
syntax (tomli stops at the first error, so there is one problem), and the meaning (all problems).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import tomli
from pydantic import ValidationError

from proxy.config.files import STDIN, FileError, read_text
from proxy.config.locate import locate
from proxy.config.messages import MISSING, explain, meant_path
from proxy.config.model import Config
from proxy.config.problem import PROBLEMS_MAX, ConfigError, Problem, dotted

__all__ = ["DEFAULT_FILE", "STDIN", "ConfigError", "Problem", "load", "parse"]

DEFAULT_FILE: Final = "/etc/sockpair/sockpair.toml"

SIZE_MAX: Final = 4 * 2**20
"""Bytes: 40,000 listeners; a larger file is some other file."""


def load(path: str | os.PathLike[str], warn: Callable[[Problem], object] | None = None) -> Config:
    """Read a configuration file; ``-`` is standard input.

    Args:
        path: the file.
        warn: called with each warning, when the configuration is usable.

    Raises:
        ConfigError: with every problem of the file.

    """
    file = os.fspath(path)
    try:
        text = read_text(file, SIZE_MAX)
    except FileError as exc:
        raise ConfigError([Problem(file, exc.line, "", str(exc))]) from exc
    return parse(text, file, warn)


def parse(text: str, file: str, warn: Callable[[Problem], object] | None = None) -> Config:
    """Read a configuration from a text; ``file`` is what messages call it.

    Raises:
        ConfigError: with every problem of the text.

    """
    document = _syntax(text, file)
    try:
        config = Config.model_validate(document)
    except ValidationError as exc:
        raise ConfigError(_problems(exc, text, file)) from exc
    if warn is not None:
        for problem in _warnings(config, text, file):
            warn(problem)
    return config


def _syntax(text: str, file: str) -> dict[str, Any]:
    """Parse TOML; every way in which tomli refuses a text becomes a problem."""
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as exc:
        problem = Problem(file, exc.lineno, "", f"not valid TOML: {exc.msg} (column {exc.colno})")
    except RecursionError:
        problem = Problem(file, 0, "", "is nested too deep: a configuration needs 6 levels")
    except ValueError:  # of int(): more digits than Python converts
        problem = Problem(file, 0, "", "contains a number of thousands of digits")
    raise ConfigError([problem])


def _problems(error: ValidationError, text: str, file: str) -> Iterator[Problem]:
    places = locate(text)
    errors = error.errors(include_url=False)[:PROBLEMS_MAX]
    meant = {meant_path(details) for details in errors}
    for details in errors:
        if details["type"] in MISSING and details["loc"] in meant:
            continue  # it is there, misspelt, which is reported
        if details["type"] == "too_short" and details["input"]:
            continue  # it has entries, none of them right, which is reported
        path, message = explain(details)
        yield Problem(file, places.nearest_line(path), dotted(path), message)
    if error.error_count() > PROBLEMS_MAX:
        yield Problem(file, 0, "", f"has more problems than the {PROBLEMS_MAX} that follow")


def _warnings(config: Config, text: str, file: str) -> Iterator[Problem]:
    places = locate(text)
    for name in config.unused_upstreams():
        path = ("upstream", name)
        message = "no listener forwards to it"
        yield Problem(file, places.nearest_line(path), dotted(path), message, is_warning=True)
