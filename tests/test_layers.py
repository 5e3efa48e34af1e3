"""The folder says what a file may import: this walks every import of the package and proves it.

``core <- config <- engine <- control, observe <- cli``: a layer imports itself and what stands to
its left; ``control`` and ``observe`` do not know each other. Every import counts, also one inside
a function or for the type checker only: a name that is only written down is a dependency too.

The checker is a function from source text to complaints, so that it can be shown to find what was
planted for it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "proxy"

# Layer -> the other layers that it may import.
LAYERS = {
    "core": set(),
    "config": {"core"},
    "engine": {"core", "config"},
    "control": {"core", "config", "engine"},
    "observe": {"core", "config", "engine"},
    "cli": {"core", "config", "engine", "control", "observe"},
}

# Module -> the only layers that may import it; none at all where the set is empty.
RESERVED = {
    "asyncio": set(),
    # observe serves the admin with it, and control asks endpoints how they are.
    "h11": {"observe", "control"},
    "prometheus_client": {"observe"},
}

# What would let core block, see the clock or the world, or roll dice.
IMPURE = {
    "datetime",
    "importlib",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "queue",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "uuid",
}

WITHOUT_ASYNC = {"core", "config"}


class Import(NamedTuple):
    line: int
    module: str


def complaints(name: str, source: str) -> list[str]:
    """What a module does against the layers; ``name`` is its full name, as ``proxy.core.flow``."""
    tree = ast.parse(source)
    layer = layer_of(name)
    found = [
        f"{name}:{line}: {layer or 'the package'} may not import {module}"
        for line, module in imports_of(name, tree)
        if not may_import(layer, module)
    ]
    if layer in WITHOUT_ASYNC:
        found += [f"{name}:{line}: async in {layer}" for line in async_lines(tree)]
    return found


def layer_of(module: str) -> str | None:
    """The layer of one of our modules; None for the package itself, ``__main__`` is the command."""
    parts = module.split(".")
    if parts[1:] == ["__main__"]:
        return "cli"
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else None


def may_import(layer: str | None, module: str) -> bool:
    top = module.split(".", maxsplit=1)[0]
    if top == PACKAGE.name:
        target = layer_of(module)
        return target is None or target == layer or target in LAYERS.get(layer or "", set())
    if top in RESERVED:
        return layer in RESERVED[top]
    if layer == "core":
        return top in sys.stdlib_module_names and top not in IMPURE
    return True


def imports_of(name: str, tree: ast.AST) -> Iterator[Import]:
    """Every import; of ``from a import b`` both ``a`` and ``a.b``, as b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(name, node)
            yield from (Import(node.lineno, f"{base}.{alias.name}") for alias in node.names)


def absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name.split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def async_lines(tree: ast.AST) -> list[int]:
    kinds = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    return [node.lineno for node in ast.walk(tree) if isinstance(node, kinds)]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts)


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_layer_is_there() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=map(module_name, MODULES))
def test_module_keeps_to_its_layer(path: Path) -> None:
    assert complaints(module_name(path), path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("proxy.core.flow", "import trio"),
        ("proxy.core.flow", "import socket"),
        ("proxy.core.flow", "from select import epoll"),
        ("proxy.core.flow", "from time import monotonic"),
        ("proxy.core.flow", "def f():\n    import random"),
        ("proxy.core.flow", "import pydantic"),
        ("proxy.core.flow", "from proxy.config import model"),
        ("proxy.core.flow", "from proxy import config"),
        ("proxy.core.flow", "from ..config import model"),
        ("proxy.core.flow", "from .. import engine"),
        ("proxy.core.flow", "if TYPE_CHECKING:\n    from proxy.engine.pump import Pump"),
        ("proxy.core.flow", "async def f(): pass"),
        ("proxy.config.model", "async def f(): pass"),
        ("proxy.config.model", "import proxy.engine.pump"),
        ("proxy.engine.pump", "from proxy.control import supervisor"),
        ("proxy.engine.pump", "import h11"),
        ("proxy.control.supervisor", "from proxy.observe import logs"),
        ("proxy.observe.logs", "from proxy.control import supervisor"),
        ("proxy.observe.logs", "import asyncio.subprocess"),
        ("proxy.cli.run", "from prometheus_client import Metric"),
        ("proxy.cli.run", "import asyncio"),
        ("proxy", "from proxy.core import flow"),
    ],
)
def test_planted_violation_is_found(name: str, source: str) -> None:
    assert len(complaints(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("proxy.core.flow", "from enum import StrEnum\nfrom proxy.core.address import Address"),
        ("proxy.core.flow", "from .address import Address"),
        ("proxy.config.model", "from proxy.core import units\nimport tomli, pydantic"),
        ("proxy.engine.pump", "import trio\nimport socket\nasync def f(): pass"),
        ("proxy.observe.metrics", "from proxy.engine.port import RelayPort\nimport h11"),
        ("proxy.cli", "from proxy import __version__"),
        ("proxy.__main__", "from proxy.cli import main"),
    ],
)
def test_what_is_allowed_is_let_through(name: str, source: str) -> None:
    assert complaints(name, source) == []
