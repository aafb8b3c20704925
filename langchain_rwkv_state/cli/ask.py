"""The command ``ask``: asks one question, prints the answer, and ends.

Without a session nothing is remembered and no store is opened. A text that is piped in is one
question, where ``chat`` takes each line for a turn.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_session
from langchain_rwkv_state.cli.options import (
    CreateOption,
    FrequencyOption,
    MaxTokensOption,
    ModelOption,
    PresenceOption,
    ReasoningOption,
    SeedOption,
    StoreOption,
    StrategyOption,
    SystemOption,
    TemperatureOption,
    TokenizerOption,
    TopKOption,
    TopPOption,
    TtlOption,
    given,
    is_store,
    open_store,
)
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session
from langchain_rwkv_state.cli.streams import is_piped, piped_text

if TYPE_CHECKING:
    from langchain_core.messages import AIMessageChunk, BaseMessage

    from langchain_rwkv_state.conversation.session import RWKVSession
    from langchain_rwkv_state.store import StateStore

_NOBODY = "nobody"  # the name of a conversation that ends with the command


def ask(
    context: typer.Context,
    question: Annotated[
        list[str] | None,
        typer.Argument(
            help='The question; or, to ask it aside, a session and a quoted question: bob "Who?"',
            show_default="standard input",
        ),
    ] = None,
    model: ModelOption = "demo",
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            "-s",
            show_default="none: nothing is remembered",
            help="Name of a conversation that this is a turn of.",
            autocompletion=complete_session,
        ),
    ] = None,
    aside: Annotated[
        bool, typer.Option("--aside", help="Answer from the session, and keep nothing of it.")
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Take each line of standard input for a turn.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document a turn, on a line of its own.")
    ] = False,
    store: StoreOption = None,
    create: CreateOption = False,
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    reasoning: ReasoningOption = None,
    system: SystemOption = None,
    ttl: TtlOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    presence_penalty: PresenceOption = None,
    frequency_penalty: FrequencyOption = None,
    max_tokens: MaxTokensOption = None,
    seed: SeedOption = None,
) -> None:
    """Ask one question, and print the answer.

    What is piped in belongs to it: the question, a blank line, and the whole text are one turn.
    """
    words = question or []
    if session is None and _begin_with_a_session(words, store, aside=aside):
        session, *words = words
        if not aside:
            output.note(f"Asked aside of {session!r}: nothing is kept. --session makes it a turn.")
        aside = True
    if session is None:
        _require_session(context)
    if aside and ttl is not None:
        raise typer.BadParameter("--aside keeps nothing: leave --ttl.")
    turns = _turns(" ".join(words), lines=lines)
    first = next(turns, None)
    if first is None:
        raise typer.BadParameter(
            'There is no question: rwkv-state ask "What is your name?", or pipe one in.'
        )
    from langchain_rwkv_state.chat_models import ChatRWKV

    settings = given(
        tokenizer=tokenizer,
        reasoning=reasoning,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        max_tokens=max_tokens,
        seed=seed,
    )
    with _opened(session, store, create=create, aside=aside) as opened:
        llm = ChatRWKV(model=model, strategy=strategy, store=opened, **settings)
        talk = llm.with_session(_NOBODY if session is None else session, ttl=ttl)
        try:
            for turn in itertools.chain([first], turns):
                stream = _stream(talk, turn, system, aside=aside)
                with closing(stream):  # type: ignore[type-var]
                    if as_json:
                        _print_json(stream, session, kept=session is not None and not aside)
                    else:
                        _print(stream)
        finally:
            llm.unload()


def _begin_with_a_session(words: list[str], place: str | None, *, aside: bool) -> bool:
    """Says whether a session's name stands before the question.

    With ``--aside`` it must, if no option names one. Without it only before a question in quotes,
    which words of a question that are typed one by one never are, and where there is that session.
    """
    if aside:
        return len(words) > 1
    quoted = len(words) == 2 and len(words[1].split()) > 1
    if not quoted or not is_store(place):
        return False
    with existing_store(place) as found:
        return found is not None and found.session(words[0], renew=False) is not None


@contextmanager
def _opened(
    session: str | None, place: str | None, *, create: bool, aside: bool
) -> Iterator[StateStore]:
    """Opens the store that a conversation is in.

    Raises:
        typer.Exit: An aside is asked of a session that there is not: its answer would be that of
            somebody who forgot everything.
    """
    if session is None:
        from langchain_rwkv_state.store import MemoryStateStore

        yield MemoryStateStore()
    elif aside:
        with existing_store(place) as found:
            if found is None or found.session(session, renew=False) is None:
                raise unknown_session(session)
            yield found
    else:
        with closing(open_store(place, create=create)) as made:
            yield made


def _require_session(context: typer.Context) -> None:
    """Checks that nothing was given that only a session has a use for.

    Raises:
        typer.BadParameter: Something was.
    """
    for name in ("aside", "ttl", "store", "create"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"--{name} is a session's, and without one nothing is remembered: name one with "
                "--session."
            )


def _turns(question: str, *, lines: bool) -> Iterator[str]:
    """Yields what is to be answered: question and standard input together, or line by line.

    The question comes before the text: a state that knows what is asked keeps what it needs.
    """
    question = question.strip()
    lines = lines and is_piped()
    texts: Iterable[str] = ("",)
    if is_piped():
        texts = piped_text() if lines else (piped_text().read(),)
    for text in texts:
        kept = text.strip() if lines else text.rstrip()
        turn = "\n\n".join(each for each in (question, kept) if each.strip())
        if turn and (kept or not lines):
            yield turn


def _stream(
    talk: RWKVSession, text: str, system: str | None, *, aside: bool
) -> Iterator[AIMessageChunk]:
    from langchain_core.messages import HumanMessage, SystemMessage

    before: list[BaseMessage] = [SystemMessage(system)] if system else []
    messages = [*before, HumanMessage(text)]
    return talk.stream_aside(messages) if aside else talk.stream(messages)


def _print(stream: Iterator[AIMessageChunk]) -> None:
    begun = whole = False
    try:
        for chunk in stream:
            sys.stdout.write(output.plain(str(chunk.text)))
            sys.stdout.flush()
            begun = True
        whole = True
    finally:
        if begun or whole:  # a line is an answer, also one that was cut off
            sys.stdout.write("\n")
            sys.stdout.flush()


def _print_json(stream: Iterator[AIMessageChunk], session: str | None, *, kept: bool) -> None:
    """Prints an answer for programs, once it is complete."""
    said = functools.reduce(lambda before, chunk: before + chunk, stream)
    about: dict[str, Any] = said.response_metadata
    usage: dict[str, Any] = {**(said.usage_metadata or {})}
    document = {
        "answer": str(said.text),
        "session": session,
        "state": about.get("rwkv_state") if kept else None,
        "model": about.get("model_name"),
        "finish_reason": about.get("finish_reason"),
        "input_tokens": usage.get("input_tokens"),
        "output_tokens": usage.get("output_tokens"),
        "cached_tokens": usage.get("input_token_details", {}).get("cache_read"),
    }
    sys.stdout.write(f"{json.dumps(document)}\n")
    sys.stdout.flush()
