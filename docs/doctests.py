"""Shows on the site what the code alone does not tell griffe, which reads it without running it.

Examples of docstrings become code, without doctest directives, and ``acommit = twin(commit)`` a
method with the verb's signature. To Markdown an example as it stands is a quotation of a quotation.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SKIP = re.compile(r" *# doctest: .*$", re.M)
_DOCTEST = re.compile(r"^( *)>>> (?:.*\n?)(?:\1\S.*\n?)*", re.M)
_TWIN = re.compile(r"twin\((?:\w+\.)?(\w+)\)")


class Doctests(griffe.Extension):  # type: ignore[misc, unused-ignore] # where griffe is not there
    """Puts a fence around each run of lines that begins with ``>>>``."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Changes an object's docstring, before it is taken apart."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nKey init args:\n", "\nArgs:\n")
            obj.docstring.value = _DOCTEST.sub(_fenced, _SKIP.sub("", text))


class Twins(griffe.Extension):  # type: ignore[misc, unused-ignore] # where griffe is not there
    """Makes methods of the attributes whose value is ``twin(verb)``."""

    def on_package(self, *, pkg: Any, **_: Any) -> None:
        """Changes a package once all of it is read."""
        verbs = pkg["store.verbs.StoreVerbs"].members
        classes = ("verbs.AsyncVerbs", "base.StateStore", "store.TableStore", "disk.DiskStateStore")
        for cls in (pkg[f"store.{name}"] for name in classes):
            for name, made in list(cls.members.items()):
                found = _TWIN.fullmatch(str(made.value)) if made.is_attribute else None
                if found is not None:
                    verb = {**verbs, **cls.members}[found[1]]
                    twin = griffe.Function(
                        name,
                        parameters=verb.parameters,
                        returns=verb.returns,
                        docstring=griffe.Docstring(f"Async twin of `{found[1]}`."),
                        lineno=made.lineno,
                        endlineno=made.endlineno,
                    )
                    twin.labels.add("async")
                    cls.set_member(name, twin)


def _fenced(found: re.Match[str]) -> str:
    indent, code = found[1], found[0].rstrip("\n")
    return f"{indent}```pycon\n{code}\n{indent}```\n"
