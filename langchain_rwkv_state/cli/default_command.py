"""Takes words that are no command for a question, as for ``ask``.

It routes words and runs nothing. A bare word that is nearly a command, or that is followed by
others as a command is, was mistyped: it is an error and no question.
"""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Any

_ASK = "ask"
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_NEAR = 0.7  # "sesions" and "statess" are; "hi" and "why" are not
_ELSEWHERE = {
    **dict.fromkeys(("list", "ls", "ps"), "sessions"),
    **dict.fromkeys(("history", "log", "logs"), "show"),
    **dict.fromkeys(("delete", "remove"), "rm"),
    **dict.fromkeys(("copy", "cp"), "fork"),
    **dict.fromkeys(("move", "mv"), "rename"),
    "run": "chat",
}
"""Commands of other programs, which nobody means to ask a model, and what they are called here."""


def asked(group: Any, ctx: Any, words: list[str]) -> list[str]:
    """Returns the words of a command line, with ``ask`` before those that name no command.

    Args:
        group: The commands.
        ctx: The context of the whole line.
        words: What was typed; none, where a question stands in standard input.

    Raises:
        click.UsageError: They are meant for a command, as it seems, that there is not.
    """
    own = [name for each in group.get_params(ctx) for name in each.opts]
    if words and (words[0] in group.commands or words[0].partition("=")[0] in own):
        return words
    if ctx.resilient_parsing:
        return [_ASK, *words]  # a line that is not complete yet
    said = _question(group.commands[_ASK], ctx, words)
    if said and _BARE.fullmatch(said[0]):
        _require_question([*group.commands, *own], ctx, said)
    return [_ASK, *words]


def _question(ask: Any, ctx: Any, words: list[str]) -> list[str]:
    """Returns the words that are no options of ``ask``.

    Raises:
        click.UsageError: An option is none of them; where it may be a question, that is said.
    """
    inner = type(ctx)(ask, info_name=_ASK, parent=ctx, help_option_names=ctx.help_option_names)
    try:
        options, _, _ = ask.make_parser(inner).parse_args(args=list(words))
    except Exception as problem:
        said = next((word for word in words if word.startswith("-") and " " in word), None)
        # Of click, or of the copy that Typer has of it.
        if said is not None and type(problem).__name__ == "NoSuchOption":
            problem.message += f". To ask it: rwkv-state -- {shlex.quote(said)}"  # type: ignore[attr-defined]
        raise
    return list(options.get("question") or ())


def _require_question(known: list[str], ctx: Any, said: list[str]) -> None:
    word = said[0]
    if word in known:
        ctx.fail(f"The command {word!r} comes first, and its options behind it.")
    near = _ELSEWHERE.get(word) or next(
        iter(difflib.get_close_matches(word.lower(), known, n=1, cutoff=_NEAR)), None
    )
    if near is None and len(said) == 1:
        return
    meant = f" Did you mean {near!r}?" if near else ""
    question = shlex.quote(" ".join(said))
    ctx.fail(f"No such command {word!r}.{meant} To ask it: rwkv-state {_ASK} {question}")
