"""CONTRIBUTING's worked changes are diffs against the code as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def hunks() -> Iterator[tuple[str, str, str]]:
    """Yields a file, and the lines that a hunk finds and leaves there."""
    for fence in re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL):
        for part in fence.split("+++ ")[1:]:
            name, *found = part.split("@@\n")
            for hunk in found:
                lines = hunk.splitlines(keepends=True)
                before = "".join(line[1:] for line in lines if line[:1] != "+")
                after = "".join(line[1:] for line in lines if line[:1] != "-")
                yield name.strip(), before, after


@pytest.mark.parametrize(("name", "before", "after"), list(hunks()))
def test_a_worked_change_fits_the_code(name, before, after):
    text = (ROOT / "langchain_rwkv_state" / name).read_text(encoding="utf-8")
    assert text.count(before) == 1
    assert before != after


def test_there_are_three():
    assert PAGE.count("```diff\n") == 3
