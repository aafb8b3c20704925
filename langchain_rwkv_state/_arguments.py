"""Checks what a model's settings are called and hold, without a model.

A name that nobody knows is an error that gives the nearest one, in a constructor, a copy and a
call alike: LangChain's models ignore what they do not know, and a mistyped ``model_path`` was the
built-in model then.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from langchain_rwkv_state.engine import MOST_TOP_LOGPROBS
from langchain_rwkv_state.prefix_cache import hidden_salt
from langchain_rwkv_state.prompt.template import TEMPLATES, ChatTemplate
from langchain_rwkv_state.store import StateStore
from langchain_rwkv_state.store.disk import LazyDiskStateStore
from langchain_rwkv_state.store.lazy import lazy_store
from langchain_rwkv_state.store.urls import is_url

SAME_AS_MODEL = ("model_name", "model_path", "model_id")
"""What other integrations call the model; taken as ``model``."""

_ELSEWHERE = {
    "tokens_path": "tokenizer",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_tokens_per_generation": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "penalty_alpha_frequency": "frequency_penalty",
    "penalty_alpha_presence": "presence_penalty",
    "repeat_penalty": "frequency_penalty",
    "repetition_penalty": "frequency_penalty",
    "stop_sequences": "stop",
    "request_timeout": "timeout",
    "device": "strategy",
    "output_version": "output_version, of the model itself: ChatRWKV(output_version='v1')",
    "system": "with_session, and a SystemMessage",
}
"""Names of other integrations, the community class among them, with what they are called here."""


_WITHOUT_MEANING = ("max_retries", "api_key")
"""LangChain's standard parameters for models behind a network, which this one is not."""


def as_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings in which the model is called ``model``.

    LangChain's standard parameters of a network are left out, with one warning.

    Args:
        values: As given to a constructor.

    Raises:
        ValueError: The model is named twice.
    """
    found = dict(values)
    if "store_location" in found:  # as it was called, in forms that were serialised then
        found["store"] = found.pop("store_location")
    idle = [name for name in _WITHOUT_MEANING if found.pop(name, None) is not None]
    if idle:
        warnings.warn(
            f"{' and '.join(idle)} {'mean' if len(idle) > 1 else 'means'} nothing to a model that "
            "runs in this process: leave it out.",
            stacklevel=4,
        )
    for name in SAME_AS_MODEL:
        if name not in found:
            continue
        given = found.pop(name)
        if found.setdefault("model", given) != given:
            raise ValueError(
                f"The model is named twice, as {found['model']!r} and as {name}={given!r}: pass "
                "model= alone."
            )
    return found


def unknown_setting(name: str, known: Iterable[str], *, of: str) -> str:
    """Returns a sentence about a setting that there is not, with the one that was meant.

    Args:
        name: As it was given.
        known: What there is.
        of: Whose setting it was to be.
    """
    names = sorted(known)
    meant = _ELSEWHERE.get(name)
    if meant is None:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        meant = near[0] if near else None
    hint = f"did you mean {meant}?" if meant else f"it knows {', '.join(names)}."
    return f"{of} has no setting {name!r}: {hint}"


def stop_texts(stop: str | Sequence[Any]) -> list[str]:
    """Returns stop texts as a list, a single one too.

    Raises:
        ValueError: One is empty or no text.
    """
    if not isinstance(stop, str | list | tuple | set | frozenset):
        raise ValueError(  # noqa: TRY004 # of pydantic's validators
            f"stop is a text or a list of texts, got {stop!r}."
        )
    texts = [stop] if isinstance(stop, str) else list(stop)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop must be texts, none of them empty, got {text!r}.")
    return texts


def logprobs(options: Mapping[str, Any]) -> int | None:
    """Returns how many likeliest tokens a call wants beside each; ``None`` for no log-probability.

    Args:
        options: Of the call; ``logprobs`` and ``top_logprobs`` are read.

    Raises:
        ValueError: One cannot have that value, or the second comes without the first.
    """
    wanted, top = options.get("logprobs"), options.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise ValueError(
            f"logprobs is True, False or None, got {wanted!r}: how many of the likeliest tokens "
            "come with each is top_logprobs."
        )
    if top is None:
        return 0 if wanted else None
    if not isinstance(top, int) or isinstance(top, bool) or not 0 <= top <= MOST_TOP_LOGPROBS:
        raise ValueError(
            f"top_logprobs is a whole number from 0 to {MOST_TOP_LOGPROBS}, or None, got {top!r}."
        )
    if not wanted:
        raise ValueError(
            f"top_logprobs={top} comes with log-probabilities, and logprobs={wanted} asks for "
            "none: pass logprobs=True, too, or leave it out."
        )
    return top


def salt(value: Any) -> str | None:
    """Returns a tenant's salt in the form that may be seen; a number counts as its text.

    Raises:
        ValueError: It is empty, or neither text nor a whole number.
    """
    if value is None:
        return None
    plain = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(plain, int) and not isinstance(plain, bool):
        plain = str(plain)
    if not isinstance(plain, str) or not plain:
        shown = "an empty text" if plain == "" else type(value).__name__
        raise ValueError(
            f"cache_salt is a tenant's text or number, or None for no tenant, got {shown}."
        )
    return hidden_salt(plain)


def store(value: Any) -> StateStore:
    """Returns a store; one that was only named is opened at its first use.

    Raises:
        ValueError: It is none of these, or empty, or a URL that cannot be read.
    """
    if isinstance(value, StateStore):
        return value
    if value is None:
        return lazy_store(None)
    if not isinstance(value, str | os.PathLike):
        raise ValueError(  # noqa: TRY004 # of pydantic's validators
            "store is a StateStore, a directory, a URL such as redis://HOST, or None for the "
            f"user's own store, got {value!r}."
        )
    path = os.fspath(value)
    if not isinstance(path, str) or not path.strip():
        raise ValueError(
            f"store={value!r} names no directory: give one, or None for the user's own store "
            "($RWKV_STATE_DIR)."
        )
    # A Path is a directory, whatever it is called.
    return lazy_store(path) if is_url(value) else LazyDiskStateStore(path)


def template(value: Any) -> Any:
    """Returns a template's class or a function that makes one.

    Raises:
        ValueError: It is something else.
    """
    names = ", ".join(map(repr, TEMPLATES))
    if isinstance(value, str):
        found = TEMPLATES.get(value.strip().lower())
        if found is not None:
            return found
        raise ValueError(
            f"There is no template {value!r}: those with a name are {names}; or pass a subclass "
            "of ChatTemplate, or a function of a tokenizer that returns a template."
        )
    if isinstance(value, ChatTemplate):
        raise ValueError(  # noqa: TRY004 # of pydantic's validators
            f"template is a class or a function of a tokenizer, got the object {value!r}: pass "
            f"{type(value).__name__}."
        )
    if value is not None and not callable(value):
        raise ValueError(
            f"template is one of {names}, a subclass of ChatTemplate or a function of a tokenizer, "
            f"got {value!r}."
        )
    return value
