"""The commands ``transcript`` and ``redact``: read what a session was told, and take turns out.

They need the session's model, to turn ids into text and to read again what stays. What was said is
somebody else's text, so it goes through `output.plain` before it is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.naming import SessionArgument
from langchain_rwkv_state.cli.options import (
    ModelOption,
    StoreOption,
    StrategyOption,
    TokenizerOption,
    store_name,
)
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session

if TYPE_CHECKING:
    from langchain_rwkv_state.chat_models import ChatRWKV
    from langchain_rwkv_state.store import StateStore


def transcript(
    session: SessionArgument,
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    store: StoreOption = None,
) -> None:
    """Print what a session was told and what it answered, with the numbers of its turns.

    Only a program that opens the store with log="tokens" keeps that.
    """
    with _at_work(session, store, model, strategy, tokenizer) as (opened, chat):
        for turn in _verb(opened, "transcript", store)(session, chat):
            said = "(its token ids are not kept)" if turn.text is None else turn.text
            before = " and those before it" if turn.joined else ""
            output.out().print(Text(f"{turn.number}{before}", style="bold"))
            output.out().print(Text(output.plain(said)), soft_wrap=True)


def redact(
    session: SessionArgument,
    turn: Annotated[
        list[int],
        typer.Option(
            "--turn", "-t", min=1, help="Number of a turn, as `transcript` has it; again for more."
        ),
    ],
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    store: StoreOption = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            envvar="RWKV_PREFIX_CACHE_DIR",
            show_default="the user's cache directory",
            help="Directory of the prefix cache that goes with it.",
        ),
    ] = None,
) -> None:
    """Take turns out of a session, as if they had never been said; this cannot be undone.

    What stood on them goes from the store and from the prefix cache on disk, in forks too. Bundles
    and backups that were made before hold them still.
    """
    with _at_work(session, store, model, strategy, tokenizer) as (opened, chat):
        redacted = _verb(opened, "redact", store)
        with _cache_beside(cache):
            done = redacted(session, turn, chat)
        info = opened.session(session, renew=False)
    left = counted(0 if info is None else info.n_turns, "turn")
    what = f"Took {counted(len(done.turns), 'turn')} out of "
    output.out().print(Text(what) + output.one_line(session) + Text(f": {left}."), soft_wrap=True)
    for name in done.sessions:
        output.out().print(Text("And out of ") + output.one_line(name) + Text("."), soft_wrap=True)
    for owner in done.owners:
        kept = Text("No longer kept for ") + output.one_line(owner) + Text(".")
        output.out().print(kept, soft_wrap=True)
    output.note("Bundles and backups that were made before hold these turns still.")


def _verb(opened: StateStore, name: str, place: str | None) -> Callable[..., Any]:
    """Returns a verb that not every store has.

    Raises:
        typer.BadParameter: This one has it not.
    """
    found: Callable[..., Any] | None = getattr(opened, name, None)
    if found is None:
        raise typer.BadParameter(
            f"{store_name(place)} keeps no token ids that could be read again: `{name}` is for a "
            "store in a directory.",
            param_hint="'--store'",
        )
    return found


@contextmanager
def _at_work(
    session: str, store: str | None, model: str, strategy: str, tokenizer: str | None
) -> Iterator[tuple[StateStore, ChatRWKV]]:
    """Opens a session's store, and gives its model."""
    with existing_store(store, history=0) as opened:
        if opened is None or opened.session(session, renew=False) is None:
            raise unknown_session(session)
        from langchain_rwkv_state.chat_models import ChatRWKV

        chat = ChatRWKV(
            model=model, strategy=strategy, tokenizer=tokenizer, store=opened, prefix_cache=False
        )
        try:
            yield opened, chat
        finally:
            chat.unload()


@contextmanager
def _cache_beside(directory: Path | None) -> Iterator[None]:
    """Opens the prefix cache on disk, if there is one: what is open is told of a redaction."""
    from langchain_rwkv_state.prefix_cache import PrefixStateCache, default_cache_directory

    path = default_cache_directory() if directory is None else directory.expanduser()
    if not path.exists():
        yield
        return
    with closing(PrefixStateCache(disk=path)):
        yield
