"""Loads a model once for the process, with its engine, and a tokenizer and template beside it.

Chat objects are settings, and many of them name one model: each holds the one entry of that file
and strategy while it uses it, and the last one lets it go. Its engine answers them all in one
batch, whatever tokenizers and templates they have: those are values, made again at any time.
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

from langchain_rwkv_state._registry import Hold
from langchain_rwkv_state.demo import MODEL_PATH, TOKENIZER_PATH
from langchain_rwkv_state.engine import Engine
from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.prefix_cache import PrefixStateCache
from langchain_rwkv_state.prompt.template import (
    ChatTemplate,
    DemoTemplate,
    G1Template,
    WorldTemplate,
)
from langchain_rwkv_state.runtime import Runtime, is_g1
from langchain_rwkv_state.runtime.loader import share_model
from langchain_rwkv_state.runtime.registry import MODELS, SharedModel, models_at_work
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import Tokenizer, load_tokenizer, tokenizer_beside

logger = logging.getLogger(__name__)

MakeTemplate = Callable[[Tokenizer], ChatTemplate]

_KEPT = 16  # pairs of tokenizer and template a model; one more costs the oldest its place


@dataclass(frozen=True)
class Loaded:
    """A model at work, as those see it who gave it one tokenizer and template.

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
    warmed: weakref.WeakSet[PrefixStateCache] = field(default_factory=weakref.WeakSet)
    model: str = ""
    strategy: str = ""
    runs_as: str = ""


class _Running:
    """The engine of one model, what its users made of it, and which limits they set.

    Args:
        runtime: The model, for the engine alone.
        tokenizer: For requests that bring none.

    Attributes:
        engine: Answers.
        known: By tokenizer and template.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer) -> None:
        self.engine = Engine(runtime, tokenizer, on_idle=MODELS.sweep)
        self.known: dict[Hashable, Loaded] = {}
        self._runtime = runtime
        self._wanted: dict[weakref.ref[object], Mapping[str, int]] = {}

    def keep(self, key: Hashable, loaded: Loaded) -> None:
        """Keeps what was made of the model with a tokenizer and a template."""
        self.known[key] = loaded
        if len(self.known) > _KEPT:
            del self.known[next(iter(self.known))]

    @property
    def at_work(self) -> bool:
        """Whether the engine did something a short while ago."""
        return self.engine.at_work

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
        effective = replace(self.engine.own_limits, **said)
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
        """Ends all requests, and lets go of the weights."""
        self.engine.close()
        self._runtime.close()
        for each in self.known.values():
            each.runtime.close()
            logger.debug("Let go of %s", each.model)


def hold_model(
    model: str,
    strategy: str,
    *,
    tokenizer: Any,
    template: MakeTemplate | None,
    limits: Mapping[str, int],
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Hold[SharedModel], Loaded]:
    """Returns a model at work, loaded if need be, and the hold that keeps it so.

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
    began = time.monotonic()
    path, hold = share_model(model, strategy, on_progress=on_progress, quiet=on_progress is None)
    try:
        makes = template or trained_on(model, path)
        name = makes if isinstance(makes, Hashable) else _Same(makes)
        key = (_tokenizer_key(tokenizer, path), name)
        shared = hold.value
        with shared.lock:
            running: _Running | None = shared.runs
            loaded = None if running is None else running.known.get(key)
            if running is None or loaded is None:
                nameless = shared.runtime(model)
                found = _tokenizer(tokenizer, path, nameless.vocab_size)
                words = makes(found)
                if not isinstance(words, ChatTemplate):
                    raise ModelLoadError(
                        "The template's function must return a ChatTemplate, it returned "
                        f"{words!r}."
                    )
                runtime = shared.runtime(model, tokenizer=found.identity, template=words.identity)
                if running is None:
                    running = shared.runs = _Running(nameless, found)
                loaded = Loaded(
                    runtime,
                    found,
                    words,
                    running.engine,
                    runtime.zero_state(),
                    model=model,
                    strategy=strategy,
                    runs_as=shared.strategy,
                )
                running.keep(key, loaded)
                seconds = time.monotonic() - began
                logger.info("Loaded %s as %s in %.1f s", model, loaded.runs_as, seconds)
        running.want(hold, limits, model)
        running.engine.open()
    except BaseException:
        hold.release()
        raise
    return hold, loaded


def find_loaded(model: str, strategy: str) -> Loaded | None:
    """Returns a model that is at work in this process, by the names that it was asked for.

    Nothing is looked up, loaded or held for it.

    Args:
        model: As for `load_runtime`; another name of the same file is not recognised.
        strategy: As for `load_runtime`.
    """
    for loaded in models_at_work():
        if (loaded.model, loaded.strategy) == (model, strategy):
            found: Loaded = loaded
            return found
    return None


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


def _tokenizer(tokenizer: Any, path: Path, vocab_size: int) -> Tokenizer:
    if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike | Tokenizer):
        raise ModelLoadError(
            f"tokenizer is 'world', a path, a Tokenizer or None, got {tokenizer!r}."
        )
    return load_tokenizer(tokenizer, model_path=path, vocab_size=vocab_size)


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
