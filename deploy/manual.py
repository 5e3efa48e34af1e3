"""Writes the manual pages sockpair(1) and sockpair.toml(5), from the commands and the model.

    python deploy/manual.py FOLDER

They say what the code says: a command, an option or a key that is added is in them. Roff is
man(7), as groff and mandoc both read it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from proxy import __version__
from proxy.cli import COMMANDS, main
from proxy.config.schema import json_schema
from proxy.config.whole import ONLY
from proxy.core.flow import CloseReason

FILES = [
    ("/etc/sockpair/sockpair.toml", "the configuration, unless -c names another one"),
    ("/run/sockpair/admin.sock", "the admin socket, unless the configuration names another one"),
]

SIGNALS = [
    (
        "SIGTERM, SIGINT",
        "end the relay: accept no more, drain, end; a second one ends every flow at once",
    ),
    ("SIGHUP", 'ask for a reload; "sockpair reload" does too, and says how it went'),
    ("SIGUSR2", "under systemd leave what lives to the next life, and end; elsewhere refused"),
]

REASONS = (
    "Why a flow ended is its close reason, in the table, the log and the metrics: one of "
    + ", ".join(reason.value for reason in CloseReason)
    + '. What causes each, and what to do, is told below "How flows end" in '
    "deploy/OPERATIONS.md of the source."
)

STATUSES = [
    ("0", "done"),
    ("1", "failed, or nothing was found; standard error says why"),
    ("2", "used wrongly"),
]


def command_page() -> str:
    """The page of the command."""
    context = click.Context(main, info_name="sockpair", **main.context_settings)
    return page(
        "sockpair",
        1,
        "layer-4 TCP/UDP proxy that keeps the table of its socket pairs",
        section("SYNOPSIS", [".B sockpair", ".I command", "[options]"]),
        section("DESCRIPTION", [text(main.help or "")]),
        section("COMMANDS", [line for name in COMMANDS for line in command(context, name)]),
        section("EXIT STATUS", terms(STATUSES)),
        section("SIGNALS", terms(SIGNALS)),
        section("CLOSE REASONS", [text(REASONS)]),
        section("ENVIRONMENT", terms([("SOCKPAIR_ADMIN", "the same as --admin")])),
        section("FILES", terms(FILES)),
        section("SEE ALSO", [".BR sockpair.toml (5),", ".BR systemctl (1),", ".BR ss (8)"]),
    )


def command(parent: click.Context, name: str) -> Iterator[str]:
    """A subcommand and its options."""
    found = main.get_command(parent, name)
    assert found is not None
    context = click.Context(found, info_name=name, parent=parent)
    usage = " ".join(["sockpair", name, *found.collect_usage_pieces(context)])
    yield f".SS {quoted(usage)}"
    yield text(found.help or "")
    yield from terms(
        record for each in found.get_params(context) if (record := each.get_help_record(context))
    )


def file_page() -> str:
    """The page of the configuration file."""
    schema = json_schema()
    return page(
        "sockpair.toml",
        5,
        "configuration of sockpair",
        section(
            "DESCRIPTION",
            [
                text(
                    "The file is TOML. What follows is every table and every key of it. "
                    'Durations are written as "500ms", "30s", "5m", "8h", "2d" or "1h30m", sizes '
                    'as "64KiB", "10MB" or "512B". "sockpair check -c FILE" reports every '
                    'problem of a file, "sockpair schema" prints its JSON Schema.'
                )
            ],
        ),
        section("TABLES", list(tables(schema, schema, ""))),
        section("FILES", terms(FILES[:1])),
        section("SEE ALSO", [".BR sockpair (1)"]),
    )


def tables(schema: dict[str, Any], table: dict[str, Any], name: str) -> Iterator[str]:
    """A table, its keys, and the tables in it."""
    if name:
        yield f".SS {quoted(f'[{name}]')}"
        yield text(table.get("description", ""))
    inner: list[tuple[str, dict[str, Any]]] = []
    for key, entry in table.get("properties", {}).items():
        path = f"{name}.{key}" if name else key
        if (found := table_of(schema, entry)) is not None:
            inner.append((path + found[0], found[1]))
            continue
        yield from terms([(key, key_text(key, entry, table))])
        if (found_row := row_of(schema, entry)) is not None:
            inner.append((f"[{path}]", found_row))
    for path, found_table in inner:
        yield from tables(schema, found_table, path)


def table_of(schema: dict[str, Any], entry: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The table that a key stands for, with what its name goes on with; None for a value."""
    if "$ref" in entry:
        found = schema["$defs"][entry["$ref"].rpartition("/")[2]]
        return ("", found) if "properties" in found else None
    if entry.get("type") == "object":
        for rule in entry.get("patternProperties", {}).values():
            if "$ref" in rule:  # else it is a table of values, such as weights or routes
                return ".NAME", schema["$defs"][rule["$ref"].rpartition("/")[2]]
    return None


def row_of(schema: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any] | None:
    """The table that an item of an array may be, such as an endpoint; None for values alone."""
    for rule in entry.get("items", {}).get("anyOf", ()):
        if "$ref" in rule:
            found: dict[str, Any] = schema["$defs"][rule["$ref"].rpartition("/")[2]]
            return found
    return None


def key_text(key: str, entry: dict[str, Any], table: dict[str, Any]) -> str:
    """What a key does, with its default, or an example, and where it is for."""
    parts = [entry.get("description", "")]
    if key in table.get("required", ()):
        parts.append("It must be there.")
    if "default" in entry:
        parts.append(f"Default: {written(entry['default'])}.")
    if "examples" in entry:
        parts.append(f"Example: {written(entry['examples'][0])}.")
    if ONLY in entry:
        parts.append(f"Only for {', '.join(entry[ONLY])}.")
    return " ".join(parts)


def written(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f'"{key}" = {written(each)}' for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )


def page(name: str, number: int, about: str, *sections: str) -> str:
    """A whole page."""
    head = f".TH {name.upper()} {number} {quoted('')} {quoted(f'sockpair {__version__}')}\n"
    return head + section("NAME", [f"{escaped(name)} \\- {escaped(about)}"]) + "".join(sections)


def section(title: str, lines: list[str]) -> str:
    """A section of a page."""
    return "\n".join([f".SH {title}", *lines]) + "\n"


def terms(pairs: Any) -> list[str]:
    """Words and what they mean."""
    return [line for word, about in pairs for line in (".TP", f".B {quoted(word)}", text(about))]


def text(words: str) -> str:
    """Words as a paragraph's text; no line of it is taken for a request."""
    paragraphs = [" ".join(part.split()) for part in words.split("\n\n")]
    lines = "\n.PP\n".join(escaped(each) for each in paragraphs if each)
    return re.sub(r"(?m)^(?!\.PP$)([.'])", r"\\&\1", lines)


def escaped(words: str) -> str:
    """Words as roff reads them."""
    return words.replace("\\", "\\e").replace("-", "\\-")


def quoted(words: str) -> str:
    """Words as one argument of a request."""
    inside = escaped(words).replace('"', "\\(dq")
    return f'"{inside}"'


def write(folder: Path) -> None:
    """Write both pages."""
    (folder / "sockpair.1").write_text(command_page(), "utf-8")
    (folder / "sockpair.toml.5").write_text(file_page(), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
