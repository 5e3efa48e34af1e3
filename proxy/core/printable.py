"""Text from outside, made safe to show.

A name, a path or an error message may hold anything: a line feed that forges a second log line, an
escape sequence that repaints a terminal, a right-to-left mark that turns an address round. Nothing
of that reaches a terminal or a line of text.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Write controls, format marks and lone surrogates as ``\x1b``, ``\u202e``, ``\udcff``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
