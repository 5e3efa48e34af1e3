"""From the validator's errors to messages for people.

The validator (pydantic) names its errors by type, and says what it means in its own terms. Here
is the one table that translates them; an entry makes the message out of the value found and of
what the model knows about the key. An error type without an entry still gives a sentence; the
tests see to it that the model raises none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from proxy.config.model import WHOLE, Config
from proxy.config.problem import Path, did_you_mean, nearest, shown
from proxy.config.whole import submodel

KEY_MARK: Final = "[key]"
"""What the validator adds to the path when the key itself is wrong, not its value."""


KEY_ERRORS: Final = frozenset({"string_type", "string_pattern_mismatch", "value_error"})
"""The types of errors of a key; any other key may be called like the mark."""


def explain(error: ErrorDetails) -> tuple[Path, str]:
    """Say what is wrong, and where."""
    path = error["loc"]
    if path[-1:] == (KEY_MARK,) and error["type"] in KEY_ERRORS:
        path = path[:-1]
    return path, _MESSAGES.get(error["type"], _unexpected)(error)


MISSING: Final = frozenset({"missing", "too_short"})
"""The types of errors about what is not there."""


def meant_path(error: ErrorDetails) -> Path | None:
    """Where the value would stand if a misspelt key were right; nothing for other errors."""
    *above, name = error["loc"] or (None,)
    model = _model_at(tuple(above)) if error["type"] == "extra_forbidden" else None
    near = nearest(str(name), model.model_fields) if model else None
    return (*above, near) if near else None


def _context(error: ErrorDetails, name: str) -> Any:
    return error.get("ctx", {}).get(name)


def _unknown_key(error: ErrorDetails) -> str:
    *above, name = error["loc"]
    model = _model_at(tuple(above))
    if model is None:
        return "unknown key"
    deeper = (key for key in _keys(model) if key.rpartition(".")[2] == name)
    near = did_you_mean(str(name), model.model_fields)
    if key := next(deeper, None):
        near = f'; did you mean "{key}"?'
    return f"unknown key{near or '; known here: ' + ', '.join(sorted(model.model_fields))}"


def _missing(error: ErrorDetails) -> str:
    *above, name = error["loc"]
    model = _model_at(tuple(above))
    assert model is not None, "only a known table misses a key"
    example = (model.model_fields[str(name)].examples or [None])[0]
    if isinstance(example, dict):
        return f"there is none; add a [{name}.{next(iter(example))}] table"
    fault = "is empty; fill it" if error["type"] == "too_short" else "missing; add it"
    return f"{fault}, for example {name} = {json.dumps(example)}"


def _choice(error: ErrorDetails) -> str:
    found = error["input"]
    expected = _context(error, "expected").replace("'", '"')
    choices = expected.replace('"', "").replace(" or ", ", ").split(", ")
    near = ""
    if isinstance(found, str):
        near = did_you_mean(found, choices) or did_you_mean(found.lower(), choices)
    return f"expected {expected}, found {shown(found)}{near}"


def _expected(what: str) -> _Message:
    return lambda error: f"expected {what}, found {shown(error['input'])}"


def _unexpected(error: ErrorDetails) -> str:
    return f"cannot be used: found {shown(error['input'])}"


_Message: TypeAlias = Callable[[ErrorDetails], str]

_MESSAGES: Final[dict[str, _Message]] = {
    WHOLE: lambda error: str(_context(error, "text")),
    "value_error": lambda error: str(_context(error, "error")),
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "too_short": _missing,
    "literal_error": _choice,
    "model_type": _expected("a table"),
    "dict_type": _expected("a table"),
    "string_type": _expected("text in quotes"),
    "string_unicode": _expected("text in quotes"),
    "bool_type": _expected("true or false"),
    "int_type": _expected("a whole number"),
    "greater_than_equal": lambda error: (
        f"expected at least {_context(error, 'ge')}, found {shown(error['input'])}"
    ),
    "less_than_equal": lambda error: (
        f"expected at most {_context(error, 'le')}, found {shown(error['input'])}"
    ),
    "string_pattern_mismatch": lambda error: (
        f'{shown(error["input"])} is not a name: expected 1 to 63 letters, digits, "_", "-" or "."'
    ),
}


def _model_at(path: Path) -> type[BaseModel] | None:
    """The model of the table at a path, if the configuration knows such a table."""
    here: Any = Config
    for step in path:
        if get_origin(here) is dict:
            here = get_args(here)[1]
        elif get_origin(here) is tuple:
            here = get_args(here)[0]
        else:
            model = submodel(here)
            field = model.model_fields.get(str(step)) if model else None
            here = field.annotation if field else None
    return submodel(here)


def _keys(model: type[BaseModel]) -> Iterator[str]:
    """Every key in and below a table, dotted; the nearest first."""
    yield from model.model_fields
    for name, field in model.model_fields.items():
        if inner := submodel(field.annotation):
            yield from (f"{name}.{key}" for key in _keys(inner))
