"""Runs the code of a page of the documentation, as it stands and in the page's own order.

Each page has a working directory and a store of its own. What is not run says so where a reader
sees it: ``# not run: ...`` at the end of a line of shell, or as the first line of a block.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from langchain_rwkv_state.cli import app

ROOT = Path(__file__).parents[2]
NOT_RUN = "# not run: "
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
_NAMED = re.compile(r"# (\S+\.\w+)\n")
_TYPED = "My name is Marlow.\nWhat is my name?\n"


@dataclass(frozen=True)
class Block:
    """A fenced block with a language.

    Attributes:
        kind: The language.
        code: What stands in it.
        line: The page's line that it begins at.
    """

    kind: str
    code: str
    line: int

    @property
    def is_run(self) -> bool:
        """Whether it does not say otherwise."""
        return not self.code.startswith(NOT_RUN)

    @property
    def commands(self) -> list[str]:
        """The lines of a shell that are run."""
        lines = (line.strip() for line in self.code.splitlines())
        return [line for line in lines if line and NOT_RUN not in line]


def blocks(page: str) -> list[Block]:
    """Returns the blocks of a page."""
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for match in _BLOCK.finditer(text)
    ]


def not_run(page: str) -> int:
    """Returns how many blocks and lines of a page say that they are not run."""
    return sum(block.code.count(NOT_RUN) for block in blocks(page))


@dataclass
class Reader:
    """Runs pages as somebody would who types them, in a directory, with a home of their own."""

    folder: Path
    home: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def follow(self, page: str) -> str:
        """Runs a page's blocks, one after the other; returns what was printed."""
        printed = io.StringIO()
        with self._at_home(), contextlib.redirect_stdout(printed):
            for block in filter(lambda each: each.is_run, blocks(page)):
                self._run(block, page)
        return printed.getvalue()

    def run(self, block: Block, page: str) -> str:
        """Runs one block; returns what was printed."""
        printed = io.StringIO()
        with self._at_home(), contextlib.redirect_stdout(printed):
            self._run(block, page)
        return printed.getvalue()

    @contextlib.contextmanager
    def _at_home(self) -> Iterator[None]:
        homes = {
            "RWKV_STATE_DIR": str(self.home / "states"),
            "RWKV_PREFIX_CACHE_DIR": str(self.home / "prefixes"),
        }
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with mock.patch.dict(os.environ, homes):
                yield
        finally:
            os.chdir(before)

    def _run(self, block: Block, page: str) -> None:
        if block.kind == "python":
            code = "\n" * block.line + block.code
            exec(compile(code, page, "exec", dont_inherit=True), self.names)
        elif block.kind in ("sh", "bash", "console"):
            for line in block.commands:
                self._type(line, page)
        elif block.kind in ("yaml", "json"):
            named = _NAMED.match(block.code)
            assert named, f"{page}:{block.line} does not say which file it is"
            Path(named[1]).write_text(block.code, "utf-8")
        else:
            raise AssertionError(f"{page}:{block.line} is in {block.kind!r}, which nothing runs")

    def _type(self, line: str, page: str) -> None:
        program, *words = shlex.split(line, comments=True)
        assert program == "rwkv-state", f"{page} runs {program!r}: say {NOT_RUN!r} and why"
        typed = io.TextIOWrapper(io.BytesIO(_TYPED.encode()), "utf-8")
        with mock.patch.object(sys, "stdin", typed):
            code = typer.main.get_command(app)(words, standalone_mode=False)
        assert not code, f"{page}: {line} ends with {code}"
