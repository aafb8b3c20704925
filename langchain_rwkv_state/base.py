"""What `ChatRWKV` and `RWKVLLM` share: their settings, and the model behind them.

The settings are values; the model is loaded at first use, shared with every other user of the
same file in this process, engine and all, and left out of copies, pickles and serialised forms.
The easy mistake is to touch the runtime from here: everything goes through the engine's one worker.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
    model_validator,
)

from langchain_rwkv_state import _arguments as settings
from langchain_rwkv_state._progress import LateBar
from langchain_rwkv_state._registry import Hold
from langchain_rwkv_state.engine import Limits, Request, Sampling
from langchain_rwkv_state.errors import StoreError, StoreFull
from langchain_rwkv_state.loaded import Loaded, find_loaded, hold_model
from langchain_rwkv_state.model_stats import ModelStats, StatsWatch
from langchain_rwkv_state.prefix_cache import PrefixStateCache, default_cache
from langchain_rwkv_state.prompt.plan import Reading
from langchain_rwkv_state.prompt.template import ChatTemplate
from langchain_rwkv_state.reuse import Flight, launch
from langchain_rwkv_state.runtime import check_model
from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore, StateStore
from langchain_rwkv_state.store.staging import STAGED_BUDGET_BYTES

SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "presence_penalty",
    "frequency_penalty",
    "penalty_decay",
    "seed",
)


class RWKVModel(BaseModel):
    """Settings of a model, and access to it.

    Raises:
        ValueError: At construction: there is no such setting, or it cannot have that value.
        ModelLoadError: At construction, where the name of the model or the strategy cannot be
            right; at first use, where loading fails.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        populate_by_name=True,
        hide_input_in_errors=True,  # a tenant's salt may stand beside what is wrong
    )

    model: str = "demo"
    """``demo``, a path to a ``.pth`` or ``.safetensors`` file, or ``org/repo[/file.pth]``."""
    strategy: str = "auto"
    """``auto``, ``cpu int8``, ``native <device> <dtype>``, or one of the `rwkv` package."""
    tokenizer: Any = None
    """``world``, the path of a ``tokenizer.json`` or a vocabulary in the format of World's, a
    `Tokenizer`, or ``None`` to find it."""
    template: Any = None
    """``world``, ``g1``, ``demo``, a `ChatTemplate` class or a function of a tokenizer; ``None``
    for the one that the model was trained on: ``g1`` where its name says so, else ``world``."""
    store_location: Any = Field(default=None, alias="store")
    """A `StateStore`, a directory, or ``None`` for the user's default store."""
    prefix_cache_setting: Any = Field(default=None, alias="prefix_cache")
    """A `PrefixStateCache`, ``None`` for the process's own, ``False`` for none."""
    cache_salt: str | None = None
    """Keeps what this model reads apart from others in the prefix cache; also an option of a call.

    A text, a number or a `SecretStr`. What is kept here, and is seen in a repr, a pickle or a
    trace, is a digest of it, which serves as well.
    """
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """0 takes the most likely token. This and the five below are the template's where not set."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    """0 chooses from all tokens."""
    presence_penalty: float | None = Field(default=None, allow_inf_nan=False)
    frequency_penalty: float | None = Field(default=None, allow_inf_nan=False)
    penalty_decay: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    """Makes the choice repeatable; ``None`` for a fresh one at each call."""
    max_tokens: int = Field(default=512, ge=1)
    stop: list[str] | None = None
    """Texts that end every answer, besides those of the template and of the call."""
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds after which an answer that is not complete ends with `DeadlineExceeded`."""
    slots: int = Field(default=Limits.slots, ge=1)
    """At most so many requests are served at once, in one pass of the model; others wait.

    This, `prefill_budget` and `max_queue` are the engine's, which all objects over one model share:
    of two that set it otherwise, the first has its way, and the second a warning.
    """
    prefill_budget: int = Field(default=Limits.prefill_budget, ge=1)
    """Tokens of prompts read in a step beside answers: fewer make their tokens come more evenly."""
    max_queue: int = Field(default=Limits.max_queue, ge=1)
    """At most so many requests wait; one more is refused with `EngineBusy`."""

    progress: bool | None = None
    """Whether long work draws a progress bar on standard error: loading, downloading, `prefill`.

    ``None`` does where that is a terminal or a notebook, and a second or more lies ahead; ``False``
    never; ``True`` as ``None``, and `ChatRWKV.batch` and `abatch` draw one too.
    """

    _call_options: ClassVar[tuple[str, ...]]
    """What a call of this class may set anew."""

    _hold: Hold[Loaded] | None = PrivateAttr(default=None)
    _loaded: Loaded | None = PrivateAttr(default=None)
    _store: StateStore | None = PrivateAttr(default=None)
    _homeless: StateStore | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.RLock)

    @model_validator(mode="before")
    @classmethod
    def _known_settings(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return cls._known(values)

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns settings that all have a name of this class.

        Raises:
            ValueError: One has not; the message gives the nearest.
        """
        found = settings.as_model(values)
        known = cls._setting_names()
        for name in found:
            if name not in known:
                raise ValueError(settings.unknown_setting(name, known, of=cls.__name__))
        return found

    @classmethod
    def _setting_names(cls) -> set[str]:
        """Returns what a constructor takes."""
        aliases = {field.alias for field in cls.model_fields.values() if field.alias}
        return set(cls.model_fields) | aliases

    @field_validator("model", mode="before")
    @classmethod
    def _model_name(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("template", mode="before")
    @classmethod
    def _template_or_maker(cls, value: Any) -> Any:
        return settings.template(value)

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: Any) -> Any:
        return None if value is None else settings.stop_texts(value)

    @field_validator("cache_salt", mode="before")
    @classmethod
    def _hidden_salt(cls, value: Any) -> Any:
        return settings.salt(value)

    @field_validator("prefix_cache_setting")
    @classmethod
    def _prefix_cache_or_none(cls, value: Any) -> Any:
        if value is not None and value is not False and not isinstance(value, PrefixStateCache):
            raise ValueError(
                f"prefix_cache is a PrefixStateCache, None for the process's own or False for "
                f"none, got {value!r}."
            )
        return value

    @field_validator("store_location", mode="before")
    @classmethod
    def _store_or_path(cls, value: Any) -> Any:
        return settings.store_or_path(value)

    @field_serializer("prefix_cache_setting")
    def _prefix_cache_off(self, setting: Any) -> Any:
        """Returns the setting as JSON: a cache of one's own stays in its process."""
        return False if setting is False else None

    @field_serializer("store_location")
    def _store_path(self, location: Any) -> str | None:
        """Returns the store as text: its directory, ``None`` for one in memory."""
        if isinstance(location, StateStore):
            location = getattr(location, "path", None)
        return None if location is None else str(location)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Shows what tells a model from another: model, strategy, store, and what was set."""
        fields, always = type(self).model_fields, ("model", "strategy", "store_location")
        for name in dict.fromkeys((*always, *fields)):
            value = getattr(self, name)
            default = fields[name].get_default(call_default_factory=True)
            if name == "metadata":  # LangChain notes versions there
                value = {key: value[key] for key in value or {} if key != "lc_versions"} or None
            is_set = fields[name].repr and name != "profile" and value != default
            if name in always or is_set:
                yield fields[name].alias or name, value

    def model_post_init(self, context: Any, /) -> None:
        """Checks what can be checked without loading."""
        super().model_post_init(context)
        check_model(self.model, self.strategy)

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain's `dumpd` writes in place of a store object."""
        plain: dict[str, Any] = {}
        if isinstance(self.store_location, StateStore):
            plain["store_location"] = self._store_path(self.store_location)
        if isinstance(self.prefix_cache_setting, PrefixStateCache):
            plain["prefix_cache_setting"] = None
        return plain

    def __copy__(self) -> Self:
        """Copies the settings; the copy shares the store, and holds the model on its own."""
        copied = super().__copy__()
        copied._hold = copied._loaded = None
        copied._lock = threading.RLock()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copies the settings: neither weights nor stores are copied."""
        copied = self.__copy__()
        for name, value in self.__dict__.items():
            if isinstance(value, (list, dict)):
                copied.__dict__[name] = copy.deepcopy(value, memo)
        return copied

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy with other settings, under their names as in the constructor."""
        changes = self._known(update or {})
        if "cache_salt" in changes:
            changes["cache_salt"] = settings.salt(changes["cache_salt"])
        if "template" in changes:
            changes["template"] = settings.template(changes["template"])
        if "store" in changes:
            changes["store_location"] = settings.store_or_path(changes.pop("store"))
        if "prefix_cache" in changes:
            changes["prefix_cache_setting"] = changes.pop("prefix_cache")
        copied = super().model_copy(update=changes, deep=deep)
        if "store_location" in changes:
            copied._store = copied._homeless = None
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        """Leaves the loaded model and the open store out of a pickle.

        Raises:
            TypeError: The store lives in memory and cannot travel.
        """
        location = self._store_path(self.store_location)
        if location is None and self.store_location is not None:
            raise TypeError(
                "A model whose store lives in memory cannot be pickled: use a DiskStateStore, or "
                "pickle it without a store."
            )
        state = super().__getstate__()
        setting = self._prefix_cache_off(self.prefix_cache_setting)
        settings = {
            **state["__dict__"],
            "store_location": location,
            "prefix_cache_setting": setting,
        }
        return {**state, "__dict__": settings, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restores the settings; the model is loaded again at first use."""
        super().__setstate__(state)
        private = dict.fromkeys(("_hold", "_loaded", "_store", "_homeless"))
        private["_lock"] = threading.RLock()
        object.__setattr__(self, "__pydantic_private__", private)

    @property
    def store(self) -> StateStore:
        """The store that this model's references live in, opened at first use."""
        if isinstance(self.store_location, StateStore):
            return self.store_location
        with self._lock:
            if self._store is None:
                self._store = DiskStateStore(self.store_location)
            return self._store

    @property
    def answer_store(self) -> StateStore:
        """Where the states of answers are staged, and markers are looked up.

        That is `store`; only where the user's own cannot be opened, as in a container whose disk is
        read-only, answers that need no memory are given all the same, with one warning: their
        states are in memory then, and nothing can be committed.
        """
        if isinstance(self.store_location, StateStore):
            return self.store_location
        with self._lock:
            if self._homeless is not None:
                return self._homeless
            try:
                return self.store
            except (StoreError, StoreFull) as error:
                if self.store_location is not None:
                    raise
                self._homeless = homeless_store()
                warnings.warn(
                    "The user's own store cannot be opened, so that states of answers are kept in "
                    "memory alone, and sessions are not possible: pass store=, or set "
                    f"RWKV_STATE_DIR. {error}",
                    stacklevel=2,
                )
                return self._homeless

    @property
    def prefix_cache(self) -> PrefixStateCache | None:
        """The cache of what was read before; ``None`` where it is switched off."""
        if self.prefix_cache_setting is False:
            return None
        return self.prefix_cache_setting or default_cache()

    def loaded(self) -> Loaded:
        """Returns the model at work, loading it at first use.

        Raises:
            ModelLoadError: It cannot be loaded; the message says why and what to do.
        """
        with self._lock:
            if self._loaded is None:
                self._hold = self._hold_model()
                self._loaded = self._hold.value
            return self._loaded

    def unload(self) -> None:
        """Lets go of the model; the last user in the process frees the weights, at once.

        The next call loads it again. A model that is simply dropped is freed some seconds after
        its last answer.
        """
        with self._lock:
            hold, self._hold, self._loaded = self._hold, None, None
        if hold is not None:
            hold.release()

    def stats(self) -> ModelStats:
        """Returns what the model does and did in this process; loads nothing.

        Example:
            >>> print(chat.stats())  # doctest: +SKIP
            demo, native cpu fp32: decode 412 tokens/s, prefill 2108 tokens/s, ...
        """
        loaded = self._loaded or find_loaded(self.model, self.strategy)
        if loaded is None:
            return ModelStats(self.model, self.strategy, loaded=False)
        cache = self.prefix_cache
        return ModelStats.of(
            self.model,
            loaded.runs_as or self.strategy,
            loaded.engine.stats(),
            None if cache is None else cache.stats(causes=False),  # polled: no request waits for it
        )

    def watch_stats(
        self, callback: Callable[[ModelStats], object], *, seconds: float = 10.0
    ) -> StatsWatch:
        """Calls a function with `stats` every so many seconds, on a thread of its own.

        Args:
            callback: Called with a `ModelStats`. What it raises is logged, the first time.
            seconds: Between two calls.

        Returns:
            The watch. It ends when it is closed, or left as a context, with a last call; and when
            this object is gone, which it does not keep.

        Raises:
            TypeError: `callback` cannot be called, or is a coroutine function; `seconds` is no
                number.
            ValueError: `seconds` is not above zero.

        Example:
            >>> with chat.watch_stats(print, seconds=60):  # doctest: +SKIP
            ...     serve(chat)
        """
        return StatsWatch(self.stats, callback, seconds=seconds)

    def _hold_model(self) -> Hold[Loaded]:
        limits = {name: getattr(self, name) for name in _LIMITS if name in self.model_fields_set}
        label = f"Loading {Path(self.model).name}"
        with LateBar(label, progress=self.progress, in_bytes=True) as bar:
            hold = hold_model(
                self.model,
                self.strategy,
                tokenizer=self.tokenizer,
                template=self.template,
                limits=limits,
                on_progress=bar.tell,
            )
        cache = self.prefix_cache
        if cache is not None and cache not in hold.value.warmed:
            hold.value.warmed.add(cache)
            cache.warm(hold.value.runtime.fingerprint)
        return hold

    def bind(self, **kwargs: Any) -> Any:
        """Binds options to every call; a tenant's salt is bound in the form that may be seen."""
        return super().bind(**seen(kwargs))  # type: ignore[misc]  # of the class beside this one

    def _sampling(self, template: ChatTemplate, overrides: Mapping[str, Any]) -> Sampling:
        """Returns the sampling of one call: what it sets, what the model sets, the template's."""
        known: dict[str, Any] = {**_SAMPLING, **template.sampling}
        for source in (vars(self), overrides):
            known |= {
                name: source[name] for name in SAMPLING_FIELDS if source.get(name) is not None
            }
        return Sampling(**known)

    def _request(
        self,
        loaded: Loaded,
        reading: Reading,
        stop: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> Request:
        """Makes the engine's request for one completion.

        Raises:
            ValueError: A setting is out of range, or unknown.
        """
        sampling = self._sampling(loaded.template, options)
        max_tokens = options.get("max_tokens")
        max_tokens = self.max_tokens if max_tokens is None else max_tokens
        if isinstance(max_tokens, int) and max_tokens < 1:
            raise ValueError(
                f"max_tokens must be 1 or more, got {max_tokens}: use prefill() to read only."
            )
        timeout = options.get("timeout")
        for name in options:
            if name not in self._call_options and name not in _LANGCHAIN_OPTIONS:
                raise ValueError(
                    settings.unknown_setting(
                        name, self._call_options, of=f"A call of {type(self).__name__}"
                    )
                )
        texts = dict.fromkeys((*(self.stop or ()), *settings.stop_texts(stop or ())))
        return Request(
            base=reading.base,
            prompt=reading.ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=tuple(texts),
            stop_ids=loaded.tokenizer.eos_ids,
            strip=False,
            canonical=loaded.tokenizer.encode,
            checkpoints=reading.checkpoints,
            deadline=self.timeout if timeout is None else timeout,
            tokenizer=loaded.tokenizer,
        )

    def _launch(
        self, loaded: Loaded, reading: Reading, request: Request, options: Mapping[str, Any]
    ) -> Flight:
        """Sends a request on its way, past what was read before; may wait for another one."""
        salt = settings.salt(options.get("cache_salt"))
        return launch(
            loaded.engine,
            request,
            reading,
            cache=self.prefix_cache,
            salt=self.cache_salt if salt is None else salt,
        )

    async def _alaunch(
        self, loaded: Loaded, reading: Reading, request: Request, options: Mapping[str, Any]
    ) -> Flight:
        """As `_launch`, without blocking the event loop; cancelled, it leaves no request behind."""
        loop = asyncio.get_running_loop()
        launching = loop.run_in_executor(
            None, functools.partial(self._launch, loaded, reading, request, options)
        )
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            launching.add_done_callback(_call_off)
            raise

    @property
    def _settings(self) -> dict[str, Any]:
        """The settings that an answer depends on."""
        names = ("model", "strategy", *SAMPLING_FIELDS, "max_tokens", "stop")
        return {name: getattr(self, name) for name in names}


@functools.cache
def homeless_store() -> StateStore:
    """Returns the process's store for answers where the user's own store cannot be opened."""
    return MemoryStateStore(staged_bytes=STAGED_BUDGET_BYTES)


def seen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a call's options as they may be seen by whoever traces it."""
    found = dict(options)
    if "cache_salt" in found:
        found["cache_salt"] = settings.salt(found["cache_salt"])
    return found


def _call_off(launching: asyncio.Future[Flight]) -> None:
    """Cancels a request that nobody waits for any more."""
    if not launching.cancelled() and launching.exception() is None:
        launching.result().ticket.cancel()


_LANGCHAIN_OPTIONS = frozenset({"stream", "ls_structured_output_format"})
"""Options that LangChain itself passes down to a model."""

CALL_OPTIONS = (*SAMPLING_FIELDS, "max_tokens", "stop", "timeout", "cache_salt")
"""What a call may set anew."""

_SAMPLING: Mapping[str, float] = {"temperature": 1.0, "top_p": 0.3}
"""Where neither call nor model nor template says anything."""

_LIMITS = ("slots", "prefill_budget", "max_queue")
"""Settings of the engine, which all that use a model share."""
