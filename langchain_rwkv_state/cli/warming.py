"""The commands that make a state to begin from: ``zero`` and ``prefill``.

`prefill` reads a text as it stands, without the chat template and without an answer; the session
that it makes is a warm state with a name. The easy mistake is to read into a session that is there:
its next answer would follow from a text that nobody in it said, so that has to be asked for.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.checkpoint import WordsOption, said
from langchain_rwkv_state.cli.options import (
    CreateOption,
    ModelOption,
    StoreOption,
    StrategyOption,
    TokenizerOption,
    TtlOption,
    open_store,
)
from langchain_rwkv_state.cli.states import Into, keep, loaded_model


def prefill(
    session: Annotated[str, typer.Argument(help="Name of the new session.")],
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", exists=True, dir_okay=False, help="A text."),
    ] = None,
    words: WordsOption = None,
    onto_head: Annotated[
        bool, typer.Option("--onto-head", help="Read on from a session that is there.")
    ] = False,
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    ttl: TtlOption = None,
    store: StoreOption = None,
    create: CreateOption = False,
) -> None:
    """Read a text, as it stands, into a session that others can begin from.

    "fork" gives a copy of it another name; "chat --session NAME" goes on from it.
    """
    text = _required(said(file, words))
    with closing(open_store(store, create=create)) as opened:
        known = opened.session(session, renew=False)
        if known is not None and not onto_head:
            raise ValueError(
                f"There is a session {session!r} already: give another name, or --onto-head to "
                "read on from where it is."
            )
        if known is None and onto_head:
            raise ValueError(f"There is no session {session!r} to read on from: leave --onto-head.")
        from langchain_rwkv_state.chat_models import ChatRWKV

        llm = ChatRWKV(
            model=model,
            strategy=strategy,
            tokenizer=tokenizer,
            store=opened,
            prefix_cache=False,
        )
        try:
            state = opened.get(llm.prefill(text, session=session, ttl=ttl))
        finally:
            llm.unload()
        read = state.n_tokens - (known.n_tokens if known else 0)
        line = Text(f"Read {counted(read, 'token')}. The session ") + output.one_line(session)
        line += Text(f" has {counted(state.n_tokens, 'token')} in {output.size(state.nbytes)}.")
        output.out().print(line, soft_wrap=True)


def zero(
    into: Into,
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    store: StoreOption = None,
    create: CreateOption = False,
) -> None:
    """Write the state of a model that has read nothing, to compare with or to begin from."""
    with loaded_model(model, strategy, tokenizer) as loaded:
        keep(loaded.zero, into, store, create=create)


def _required(text: str | None) -> str:
    if text is None:
        raise typer.BadParameter("Give the text with --file or with --words.")
    return text
