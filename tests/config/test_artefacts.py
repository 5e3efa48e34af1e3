"""The sample configurations: they load, and the reference is complete and tells the truth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import tomli
from pydantic import BaseModel

from proxy.config.load import Problem, load, parse
from proxy.config.model import Config
from proxy.config.whole import submodel

FOLDER = Path(__file__).parents[2] / "config"
REFERENCE = FOLDER / "sockpair.toml"

# Inventions of the reference; they have no default.
INVENTED = {"listener.listen", "listener.upstream", "upstream.endpoints.address"}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda file: file.stem)
def test_samples_load_without_a_warning(file: Path) -> None:
    warnings: list[Problem] = []
    load(file, warnings.append)
    assert warnings == []


def named_tables(annotation: object) -> type[BaseModel] | None:
    """The model of tables that the operator names, or lists; nothing for other keys."""
    if get_origin(annotation) is tuple:
        return submodel(get_args(annotation)[0])
    return submodel(get_args(annotation)[1]) if get_origin(annotation) is dict else None


def keys(document: dict[str, Any], model: type[BaseModel] = Config) -> Iterator[tuple[str, Any]]:
    """Every key with its dotted path, in which the names that the operator gives are left out."""
    for name, value in document.items():
        annotation = model.model_fields[name].annotation
        inner = submodel(annotation)
        if inner is not None:
            yield from ((f"{name}.{path}", each) for path, each in keys(value, inner))
        elif inner := named_tables(annotation):
            tables = value.values() if isinstance(value, dict) else value
            for table in (each for each in tables if isinstance(each, dict)):
                yield from ((f"{name}.{path}", each) for path, each in keys(table, inner))
        else:
            yield name, value


def model_keys(model: type[BaseModel] = Config) -> dict[str, Any]:
    """Every key there is, with its default."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = submodel(field.annotation) or named_tables(field.annotation)
        if inner is None:
            found[name] = field.default
        else:
            found |= {f"{name}.{path}": default for path, default in model_keys(inner).items()}
    return found


def uncommented() -> str:
    """The reference with its examples in force; the files it names lie here."""
    text = re.sub(r'(?m)^# (?=(?:\w+|"\S+") = )', "", REFERENCE.read_text())
    return re.sub(r"/etc/sockpair/(?=\w+\.txt)", f"{Path(__file__).parent}/", text)


def test_the_reference_names_every_key() -> None:
    parse(uncommented(), "uncommented")
    named = {name for name, _ in keys(tomli.loads(uncommented()))}
    assert set(model_keys()) == named


def test_the_reference_equals_the_defaults() -> None:
    defaults = model_keys()
    for name, value in keys(tomli.loads(REFERENCE.read_text())):
        if name not in INVENTED:
            assert value == defaults[name], name


def test_what_the_reference_comments_out_has_no_default() -> None:
    active = {name for name, _ in keys(tomli.loads(REFERENCE.read_text()))}
    for name, default in model_keys().items():
        if name not in INVENTED:
            assert (name in active) == (default is not None), name


def test_every_key_of_the_reference_has_a_comment() -> None:
    for line in uncommented().splitlines():
        invented = {part for each in INVENTED for part in each.split(".")[1:]}
        if re.match(r"\w+ = ", line) and line.split()[0] not in invented:
            assert "  # " in line, line
