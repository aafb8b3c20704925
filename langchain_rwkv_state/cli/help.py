"""Prints commands' help as it was written: what stands in square brackets stays.

The easy mistake is to escape a text where it is written: Typer hands help texts to rich, which
reads ``[system, You are ...]`` as markup and shows nothing of it, and the next text is forgotten.
"""

from __future__ import annotations

import inspect
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup


class LiteralCommand(TyperCommand):
    """A command whose help texts hold no markup."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _make_literal(self)


class LiteralGroup(TyperGroup):
    """A group of commands whose help texts hold no markup."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _make_literal(self)


def _make_literal(command: TyperCommand | TyperGroup) -> None:
    """Escapes the texts of a command that was just made, and so is nobody else's."""
    command.help = _literal(_joined(command.help))
    command.short_help = _literal(command.short_help)
    command.epilog = _literal(command.epilog)
    for parameter in command.params:
        if isinstance(parameter, typer.core.TyperOption | typer.core.TyperArgument):
            parameter.help = _literal(parameter.help)


def _literal(text: str | None) -> str | None:
    return text and escape(text)


def _joined(text: str | None) -> str | None:
    """Returns a text whose paragraphs are one line each: a terminal is folded by its own width."""
    if text is None:
        return None
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(each.split()) for each in paragraphs)
