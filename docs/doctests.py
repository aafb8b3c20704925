"""Examples of docstrings as code: what a site's reader copies has no doctest directives in it.

An extension of griffe, which reads the docstrings. The easy mistake is to leave an example as it
stands: to Markdown it is a quotation of a quotation of a quotation.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SKIP = re.compile(r" *# doctest: .*$", re.M)
_DOCTEST = re.compile(r"^( *)>>> (?:.*\n?)(?:\1\S.*\n?)*", re.M)


class Doctests(griffe.Extension):  # type: ignore[misc, unused-ignore] # where griffe is not there
    """Puts a fence around each run of lines that begins with ``>>>``."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Changes an object's docstring, before it is taken apart."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nKey init args:\n", "\nArgs:\n")
            obj.docstring.value = _DOCTEST.sub(_fenced, _SKIP.sub("", text))


def _fenced(found: re.Match[str]) -> str:
    indent, code = found[1], found[0].rstrip("\n")
    return f"{indent}```pycon\n{code}\n{indent}```\n"
