"""A model at work, as this process has it once: runtime, tokenizer, template, engine.

Chat objects are settings, and many of them name one model: each holds what is here while it uses
it, and the last one lets it go. One file and strategy has one engine, whatever tokenizers and
templates its users have, so that all of them decode in one batch. The easy mistake is to load at a
chat object's construction: it must cost microseconds, for LangChain makes one for many a call.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from langchain_rwkv_state._registry import Hold, Registry
from langchain_rwkv_state.demo import MODEL_PATH, TOKENIZER_PATH
from langchain_rwkv_state.engine import Engine, Limits
from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.prefix_cache import PrefixStateCache
from langchain_rwkv_state.prompt.template import (
    ChatTemplate,
    DemoTemplate,
    G1Template,
    WorldTemplate,
)
from langchain_rwkv_state.runtime import Runtime, is_g1, load_runtime, locate, model_key
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import Tokenizer, load_tokenizer, tokenizer_beside

logger = logging.getLogger(__name__)

MakeTemplate = Callable[[Tokenizer], ChatTemplate]


class SharedEngine:
    """The engine of one file and strategy, and who wants which limits of it.

    Args:
        runtime: The model; closed with the engine.
        tokenizer: For requests that bring none.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer) -> None:
        self.engine = Engine(runtime, tokenizer, on_idle=LOADED.sweep)
        self._runtime = runtime
        self._wanted: dict[weakref.ref[object], Mapping[str, int]] = {}

    def want(self, user: object, limits: Mapping[str, int], model: str) -> None:
        """Notes which limits a user set; of several, the first who is still there has its way.

        Args:
            user: Whoever uses the engine; what it wants is forgotten with it.
            limits: By name, those alone that were set on purpose.
            model: For the warning that is due where another user set one otherwise.
        """
        if limits:
            self._wanted[weakref.ref(user)] = dict(limits)
        said: dict[str, int] = {}
        for who, each in list(self._wanted.items()):
            if who() is None:
                self._wanted.pop(who, None)
            else:
                said = {**each, **said}
        effective = replace(Limits(), **said)
        if effective != self.engine.limits:
            self.engine.limits = effective
        for name, value in limits.items():
            if said[name] != value:
                warnings.warn(
                    f"The model {model!r} is at work in this process with {name}={said[name]}, "
                    f"which another object set: one engine serves them all, so {name}={value} is "
                    "not applied. Give both the same, or unload the other one first.",
                    stacklevel=5,
                )

    def close(self) -> None:
        """Ends all requests, and gives the weights back."""
        self.engine.close()
        self._runtime.close()


@dataclass(frozen=True)
class Loaded:
    """A model at work: its runtime and what stands around it.

    Attributes:
        runtime: The model, under the identities of tokenizer and template.
        tokenizer: Turns text into ids and back.
        template: Turns messages into ids.
        engine: Answers; shared with all that use the same file and strategy.
        zero: The state that has read nothing.
        warmed: Caches that hold this model's pinned states.
        model: Its name, as the first user gave it.
        strategy: The strategy, likewise.
        runs_as: The strategy that came of it, such as ``native cpu fp32``.
    """

    runtime: Runtime
    tokenizer: Tokenizer
    template: ChatTemplate
    engine: Engine
    zero: RWKVState
    shared: Hold[SharedEngine] | None = None
    warmed: weakref.WeakSet[PrefixStateCache] = field(default_factory=weakref.WeakSet)
    model: str = ""
    strategy: str = ""
    runs_as: str = ""

    def close(self) -> None:
        """Gives runtime and engine back."""
        self.runtime.close()
        if self.shared is not None:
            self.shared.release()
        logger.debug("Let go of %s", self.model)


def _is_at_work(loaded: Loaded) -> bool:
    return loaded.engine.at_work


ENGINES: Registry[SharedEngine] = Registry(close=SharedEngine.close)
"""Every engine of this process, by file and strategy."""

LOADED: Registry[Loaded] = Registry(close=Loaded.close, stays=_is_at_work)
"""Every model at work in this process, by file, strategy, tokenizer and template.

Without users it stays until its engine has had nothing to do for a while: whoever makes a chat
object for each request does not load the weights for each.
"""


def hold_model(
    model: str,
    strategy: str,
    *,
    tokenizer: Any,
    template: MakeTemplate | None,
    limits: Mapping[str, int],
    on_progress: Callable[[int, int], None] | None = None,
) -> Hold[Loaded]:
    """Returns a hold on a model at work, loaded if need be.

    Args:
        model: As for `load_runtime`.
        strategy: As for `load_runtime`.
        tokenizer: As for `load_tokenizer`.
        template: Makes the template; ``None`` for the one that the model was trained on.
        limits: What the user set of the engine's `Limits`, by name.
        on_progress: As for `load_runtime`; without, a download draws no bar either.

    Raises:
        ModelLoadError: It cannot be loaded; the message says why and what to do.
    """
    path = locate(model, quiet=on_progress is None)
    weights = model_key(model, strategy)
    makes = template or trained_on(model, path)
    key = (weights, _tokenizer_key(tokenizer, path), makes)

    def load() -> Loaded:
        began = time.monotonic()
        nameless = load_runtime(model, strategy, on_progress=on_progress)
        try:
            if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike | Tokenizer):
                raise ModelLoadError(
                    f"tokenizer is 'world', a path, a Tokenizer or None, got {tokenizer!r}."
                )
            found = load_tokenizer(tokenizer, model_path=path, vocab_size=nameless.vocab_size)
            words = makes(found)
            if not isinstance(words, ChatTemplate):
                raise ModelLoadError(
                    f"The template's function must return a ChatTemplate, it returned {words!r}."
                )
            runtime = load_runtime(model, strategy, found.identity, template=words.identity)
            shared = ENGINES.held(
                weights, lambda: SharedEngine(load_runtime(model, strategy), found)
            )
        finally:
            nameless.close()
        loaded = Loaded(
            runtime,
            found,
            words,
            shared.value.engine,
            runtime.zero_state(),
            shared=shared,
            model=model,
            strategy=strategy,
            runs_as=getattr(runtime, "strategy", strategy),
        )
        seconds = time.monotonic() - began
        logger.info("Loaded %s as %s in %.1f s", model, loaded.runs_as, seconds)
        return loaded

    hold = LOADED.held(key, load)
    shared = hold.value.shared
    if shared is not None:
        shared.value.want(hold, limits, model)
    return hold


def find_loaded(model: str, strategy: str) -> Loaded | None:
    """Returns a model that is at work in this process, by the names that it was asked for.

    Nothing is looked up, loaded or held for it.

    Args:
        model: As for `load_runtime`; another name of the same file is not recognised.
        strategy: As for `load_runtime`.
    """
    wanted = (model, strategy)
    return next((each for each in LOADED.values() if (each.model, each.strategy) == wanted), None)


def trained_on(model: str, path: Path) -> type[ChatTemplate]:
    """Returns the template that a model was trained on, by what its name and file say.

    Args:
        model: Its name, as a user gave it.
        path: Its file or folder.
    """
    if path == MODEL_PATH or _has_demos_tokenizer(path):
        return DemoTemplate
    return G1Template if is_g1(model) or is_g1(path) else WorldTemplate


def _has_demos_tokenizer(path: Path) -> bool:
    """Says whether a model is the demo model's copy, or was trained as it was."""
    beside = tokenizer_beside(path)
    try:
        return beside.read_bytes() == TOKENIZER_PATH.read_bytes()
    except OSError:
        return False


def _tokenizer_key(tokenizer: Any, model_path: Path) -> Hashable:
    """Names a tokenizer by what was asked for, and by the file that it leads to."""
    if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
        return _Same(tokenizer)
    named = None if tokenizer is None else os.fspath(tokenizer)
    path = tokenizer_beside(model_path) if named is None else Path(named).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        about = path.stat()
    except OSError:
        return named, str(path)
    return named, str(path.resolve()), about.st_ino, about.st_size, about.st_mtime_ns


class _Same:
    """A key for an object that may have no hash: the object itself, and nothing that equals it."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
