"""Holds the settings that `ChatRWKV` and `RWKVLLM` share, loads their model and lets it go.

The settings are values: the store that they name opens at its first use, and the model is loaded at
the first call, shared with every other user of the same file in this process, and left out of
copies, pickles and serialised forms.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

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
from langchain_rwkv_state.loaded import Loaded, find_loaded, hold_model
from langchain_rwkv_state.model_stats import ModelStats, StatsWatch
from langchain_rwkv_state.prefix_cache import PrefixStateCache, default_cache
from langchain_rwkv_state.prompt.plan import PromptPlan
from langchain_rwkv_state.prompt.template import ChatTemplate
from langchain_rwkv_state.runtime import check_model
from langchain_rwkv_state.runtime.registry import SharedModel
from langchain_rwkv_state.store import StateStore
from langchain_rwkv_state.store.disk import LazyDiskStateStore
from langchain_rwkv_state.store.lazy import LazyStore

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
    """``auto``, ``<device> <dtype>`` such as ``cuda fp16`` or ``cpu int8``, or another that
    `load_runtime` names."""
    tokenizer: Any = None
    """``world``, the path of a ``tokenizer.json`` or a vocabulary in the format of World's, a
    `Tokenizer`, or ``None`` to find it."""
    template: Any = None
    """``world``, ``g1``, ``demo``, a `ChatTemplate` class or a function of a tokenizer; ``None``
    for the one that the model was trained on: ``g1`` where its name says so, else ``world``."""
    if TYPE_CHECKING:  # a constructor takes more than what is read is
        store_given: Any = Field(default=None, alias="store")

        @property
        def store(self) -> StateStore:
            """A `StateStore`; given as one, a directory, a URL, or ``None`` for the user's own.

            A URL is one of `open_store`, such as ``redis://HOST`` or ``memory:``. What is named is
            opened at first use; two objects that name the same one share it.
            """
            ...
    else:
        store: Any = Field(default=None, validate_default=True)
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
    """Tokens of prompts read in a step beside answers: fewer make their tokens come more evenly.

    Where it is not set it is the device's own: this on a CPU, 512 on a card, which reads so many
    in the time of few.
    """
    max_queue: int = Field(default=Limits.max_queue, ge=1)
    """At most so many requests wait; one more is refused with `EngineBusy`."""

    progress: bool | None = None
    """Whether long work draws a progress bar on standard error: loading, downloading, `prefill`.

    ``None`` does where that is a terminal or a notebook, and a second or more lies ahead; ``False``
    never; ``True`` as ``None``, and `ChatRWKV.batch` and `abatch` draw one too.
    """

    _call_options: ClassVar[tuple[str, ...]]
    """What a call of this class may set anew."""

    _hold: Hold[SharedModel] | None = PrivateAttr(default=None)
    _loaded: Loaded | None = PrivateAttr(default=None)

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

    @field_validator("store", mode="before")
    @classmethod
    def _store_or_path(cls, value: Any) -> Any:
        return settings.store(value)

    @field_serializer("prefix_cache_setting")
    def _prefix_cache_off(self, setting: Any) -> Any:
        """Returns the setting as JSON: a cache of one's own stays in its process."""
        return False if setting is False else None

    @field_serializer("store")
    def _store_name(self, store: Any) -> str | None:
        """Returns the store as text: see `StateStore.location`."""
        location: str | None = store.location
        return location

    @property
    def store_location(self) -> str | None:
        """The store's directory, or its URL without a password.

        That is ``None`` for the user's default store, and for one in memory that no URL names.
        """
        return self._store_name(self.store)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Shows what tells a model from another: model, strategy, store, and what was set."""
        fields, always = type(self).model_fields, ("model", "strategy", "store")
        for name in dict.fromkeys((*always, *fields)):
            value = getattr(self, name)
            if name == "store" and isinstance(value, LazyStore):
                value = value.location
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

    def to_json(self) -> Any:
        """Returns what LangChain's `dumpd` writes: a store by its name, a cache not at all."""
        form: Any = super().to_json()  # type: ignore[misc] # of the class beside this one
        written = form.get("kwargs", {})
        written.pop("store", None)
        if self.store_location is not None:
            written["store"] = self.store_location
        if isinstance(self.prefix_cache_setting, PrefixStateCache):
            written.pop("prefix_cache_setting", None)
        return form

    def __copy__(self) -> Self:
        """Copies the settings; the copy holds the model on its own."""
        copied = super().__copy__()
        copied._hold = copied._loaded = None
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copies the settings: neither weights nor stores are copied."""
        copied = self.__copy__()
        for name, value in self.__dict__.items():
            if isinstance(value, (list, dict)):
                copied.__dict__[name] = copy.deepcopy(value, memo)
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        """Leaves the loaded model out of a pickle, and a cache of one's own."""
        setting = self._prefix_cache_off(self.prefix_cache_setting)
        return {
            **super().__getstate__(),
            "__dict__": {**self.__dict__, "prefix_cache_setting": setting},
            "__pydantic_private__": {"_hold": None, "_loaded": None},
        }

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy with other settings, under their names as in the constructor."""
        changes = self._known(update or {})
        for name, checked in _CHECKED.items():
            if name in changes:
                changes[name] = checked(changes[name])
        if "prefix_cache" in changes:
            changes["prefix_cache_setting"] = changes.pop("prefix_cache")
        return super().model_copy(update=changes, deep=deep)

    @property
    def answer_store(self) -> StateStore:
        """Where the states of answers are staged, and markers are looked up.

        That is `store`; only where the user's own cannot be opened it is one in memory.
        """
        store = self.store
        return store.or_memory() if isinstance(store, LazyStore) else store

    def _opened_store(self) -> StateStore:
        """Returns the store, a directory opened; what may wait for a network does so at a verb.

        Raises:
            StoreError, StoreFull: It cannot be.
        """
        store = self.store
        return store.opened() if isinstance(store, LazyDiskStateStore) else store

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
        loaded = self._loaded
        if loaded is None:
            self._hold, loaded = self._hold_model()
            self._loaded = loaded
        return loaded

    def unload(self) -> None:
        """Lets go of the model; the last user in the process frees the weights, at once.

        The next call loads it again. A model that is simply dropped is freed some seconds after
        its last answer.
        """
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
        self, callback: Callable[[ModelStats], object], *, every_seconds: float = 10.0
    ) -> StatsWatch:
        """Calls a function with `stats` every so many seconds, on a thread of its own.

        Args:
            callback: Called with a `ModelStats`. What it raises is logged, the first time.
            every_seconds: Between two calls.

        Returns:
            The watch. It ends when it is closed, or left as a context, with a last call; and when
            this object is gone, which it does not keep.

        Raises:
            TypeError: `callback` cannot be called, or is a coroutine function; `every_seconds` is
                no number.
            ValueError: `every_seconds` is not above zero.

        Example:
            >>> with chat.watch_stats(print, every_seconds=60):  # doctest: +SKIP
            ...     serve(chat)
        """
        return StatsWatch(self.stats, callback, every_seconds=every_seconds)

    def _hold_model(self) -> tuple[Hold[SharedModel], Loaded]:
        limits = {name: getattr(self, name) for name in _LIMITS if name in self.model_fields_set}
        label = f"Loading {Path(self.model).name}"
        with LateBar(label, progress=self.progress, in_bytes=True) as bar:
            hold, loaded = hold_model(
                self.model,
                self.strategy,
                tokenizer=self.tokenizer,
                template=self.template,
                limits=limits,
                on_progress=bar.tell,
            )
        cache = self.prefix_cache
        if cache is not None and cache not in loaded.warmed:
            loaded.warmed.add(cache)
            cache.warm(loaded.runtime.fingerprint)
        return hold, loaded

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
        planned: PromptPlan,
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
        salt = settings.salt(options.get("cache_salt"))
        for name in options:
            if name not in self._call_options and name not in _LANGCHAIN_OPTIONS:
                raise ValueError(
                    settings.unknown_setting(
                        name, self._call_options, of=f"A call of {type(self).__name__}"
                    )
                )
        texts = dict.fromkeys((*(self.stop or ()), *settings.stop_texts(stop or ())))
        return Request(
            base=planned.base,
            prompt=planned.ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=tuple(texts),
            stop_ids=loaded.tokenizer.eos_ids,
            strip=False,
            canonical=loaded.tokenizer.encode,
            checkpoints=planned.checkpoints,
            caching=planned.caching(self.prefix_cache, self.cache_salt if salt is None else salt),
            deadline=self.timeout if timeout is None else timeout,
            tokenizer=loaded.tokenizer,
            logprobs=settings.logprobs(options),
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """The settings that an answer depends on."""
        names = ("model", "strategy", *SAMPLING_FIELDS, "max_tokens", "stop")
        return {name: getattr(self, name) for name in names}


def seen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a call's options as they may be seen by whoever traces it."""
    found = dict(options)
    if "cache_salt" in found:
        found["cache_salt"] = settings.salt(found["cache_salt"])
    return found


_LANGCHAIN_OPTIONS = frozenset({"stream", "ls_structured_output_format"})
"""Options that LangChain itself passes down to a model."""

CALL_OPTIONS = (
    *SAMPLING_FIELDS,
    "max_tokens",
    "stop",
    "timeout",
    "cache_salt",
    "logprobs",
    "top_logprobs",
)
"""What a call may set anew."""

_SAMPLING: Mapping[str, float] = {"temperature": 1.0, "top_p": 0.3}
"""Where neither call nor model nor template says anything."""

_CHECKED: Mapping[str, Callable[[Any], Any]] = {
    "cache_salt": settings.salt,
    "template": settings.template,
    "store": settings.store,
}
"""Settings that a constructor puts into another form, and a copy too."""

_LIMITS = ("slots", "prefill_budget", "max_queue")
"""Settings of the engine, which all that use a model share."""
