"""How tools, calls, results and schemas are written down: the G1 format, as the template has it.

Texts only; what they are about is made in `tools` and `records`. There is no space too
many: JSON is compact here, as a grammar forces it later.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CALL_ONLY = "Return only a JSON function call."


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool, or one field of a schema.

    Attributes:
        name: Its name.
        type: Its type as text, such as `string` or `"a" | "b"`.
        optional: Whether a call may leave it out.
        description: What it is, may be empty.
    """

    name: str
    type: str = "string"
    optional: bool = False
    description: str = ""

    def __str__(self) -> str:
        mark = "?" if self.optional else ""
        end = f" ({self.description})" if self.description else ""
        return f"{self.name}{mark}: {self.type}{end}"


def signature(name: str, parameters: tuple[Parameter, ...], description: str) -> str:
    """A tool or a schema in one line: `add(a: integer, b: integer) - Add two numbers.`."""
    inside = ", ".join(str(p) for p in parameters)
    return f"{name}({inside})" + (f" - {description}" if description else "")


def tool_list(signatures: list[str]) -> str:
    """The end of a system prompt that lists tools."""
    return "\n".join(["Tools:", *(f"- {s}" for s in signatures), CALL_ONLY])


def compact(value: Any) -> str:
    """A value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def call_text(calls: list[dict[str, Any]]) -> str:
    """The assistant's whole answer where it calls one tool or several."""
    return f"```json\n{compact(calls[0] if len(calls) == 1 else calls)}\n```"


def result_text(text: str) -> str:
    """What a user's turn says where it hands a tool's result back."""
    return f"Function output:\n{text}"
