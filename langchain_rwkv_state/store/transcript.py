"""Reads a session's token ids as text, and finds the model that can read them.

A store needs no model, so the model comes from the caller, or is one that answers in this process
already: nothing is loaded for it. Text is the tokenizer's matter alone, so any model with the same
one will do; states are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from langchain_rwkv_state.errors import ModelLoadError, StateMismatch, StateNotFound
from langchain_rwkv_state.store.rebuild import same_model, same_tokenizer
from langchain_rwkv_state.store.records import (
    LogEntry,
    Origin,
    TranscriptTurn,
    unpack_tokens,
)
from langchain_rwkv_state.store.tables import Tables

if TYPE_CHECKING:
    from langchain_rwkv_state.runtime.base import Runtime
    from langchain_rwkv_state.tokenizer import Tokenizer


class Template(Protocol):
    """What is asked of the way in which a chat is written, as `ChatTemplate` answers it."""

    def opening_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Returns a turn's ids as those of a conversation that begins with it."""
        ...

    def block_length(self, ids: Sequence[int], digest: str) -> int | None:
        """Returns how many of a turn's first ids are the system block of a digest."""
        ...


@dataclass(frozen=True)
class ModelAtWork:
    """A model with what turns text into its ids.

    Attributes:
        runtime: The model.
        tokenizer: Its tokenizer; ``None`` where a runtime alone was given, as is the next.
        template: How a chat is written.
    """

    runtime: Runtime
    tokenizer: Tokenizer | None = None
    template: Template | None = None


def model_for(fingerprint: str, given: Any, *, reads: bool) -> ModelAtWork:
    """Returns the model for a session's ids.

    Args:
        fingerprint: That of the session's states.
        given: A chat object, a runtime, or ``None`` for one that answers in this process.
        reads: Whether it is to read ids, and so must be the very model; else its tokenizer will do.

    Raises:
        ModelLoadError: None was given, and none at work fits.
        StateMismatch: The one that was given is another model.
        TypeError: It is none.
    """
    if given is not None:
        found = _given(given)
        if not _fits(found, fingerprint, reads=reads):
            raise StateMismatch(
                f"The session is of the model {fingerprint!r}, and runtime= is "
                f"{found.runtime.fingerprint!r}: pass a chat object of the session's model."
            )
        return found
    from langchain_rwkv_state.runtime.registry import models_at_work

    fitting = [each for each in models_at_work() if _fits(each, fingerprint, reads=reads)]
    if not fitting:
        raise ModelLoadError(
            f"The session is of the model {fingerprint!r}, which is not at work in this process: "
            "make a ChatRWKV with its model and use it once, or pass it as runtime=."
        )
    exact = [each for each in fitting if each.runtime.fingerprint == fingerprint]
    best = (exact or fitting)[0]
    return ModelAtWork(best.runtime, best.tokenizer, best.template)


def _given(given: Any) -> ModelAtWork:
    loaded = getattr(given, "loaded", None)
    if callable(loaded):
        found = loaded()
        return ModelAtWork(found.runtime, found.tokenizer, found.template)
    if callable(getattr(given, "forward", None)) and hasattr(given, "fingerprint"):
        return ModelAtWork(given)
    raise TypeError(f"runtime= is a chat object or a Runtime, got {given!r:.100}.")


def _fits(model: Any, fingerprint: str, *, reads: bool) -> bool:
    current = model.runtime.fingerprint
    if reads and not same_model(fingerprint, current):
        return False
    return same_tokenizer(fingerprint, current)


def logged_session(view: Tables, session: str) -> list[LogEntry]:
    """Returns the log of a session, oldest turn first.

    Raises:
        StateNotFound: There is no such session.
        ValueError: No token ids of it are kept.
    """
    if view.session(session) is None:
        raise StateNotFound(
            f"There is no session {session!r} in this store: store.sessions() gives the names of "
            "those that there are."
        )
    log = view.log(session)[::-1]
    if log and not any(turn.origin for turn in log):
        raise ValueError(
            f"No token ids of the session {session!r} are kept: only a store with log='tokens' "
            "keeps them, from the turn on at which it was opened so."
        )
    return log


def is_joined(turn: LogEntry, oldest: LogEntry) -> bool:
    """Says whether a turn's ids may be those of the turns before it, too.

    A log that lets go of its oldest turn hands that one's ids on to the next.
    """
    return turn.seq > 1 and turn.seq == oldest.seq and origin_of(turn).base != turn.parent


def origin_of(turn: LogEntry) -> Origin:
    """Returns the ids of a turn that has some."""
    assert turn.origin is not None  # noqa: S101 # as its callers looked
    return turn.origin


def texts(log: Sequence[LogEntry], given: Any) -> list[TranscriptTurn]:
    """Returns a log as text.

    Args:
        log: Oldest turn first.
        given: As for `model_for`.

    Raises:
        ModelLoadError, StateMismatch, TypeError: As `model_for`.
        ValueError: A runtime was given, which has no tokenizer.
    """
    found: list[TranscriptTurn] = []
    decoders: dict[str, Tokenizer] = {}
    for turn in log:
        text, joined = None, False
        if turn.origin is not None:
            fingerprint = turn.origin.fingerprint
            if fingerprint not in decoders:
                decoders[fingerprint] = _tokenizer(fingerprint, given)
            text = decoders[fingerprint].decode(unpack_tokens(turn.origin.tokens)).strip()
            joined = is_joined(turn, log[0])
        found.append(TranscriptTurn(turn.seq, turn.ref, turn.created_seconds, text, joined))
    return found


def _tokenizer(fingerprint: str, given: Any) -> Tokenizer:
    found = model_for(fingerprint, given, reads=False).tokenizer
    if found is None:
        raise ValueError(
            "A runtime has no tokenizer, so that it cannot tell what ids say: pass the chat object "
            "of the model as runtime=."
        )
    return found
