"""`LazyUrlStore`: a store that is named by a URL, and is opened at its first use.

A chat model's settings are values: made, copied, pickled and serialised without a server being
asked. `LazyDiskStateStore` is this for a directory; here each verb is passed on, since which class
a URL stands for is known when it is opened. The easy mistake is to ask it for anything but a verb
on an event loop: that opens the store there, and may wait for a network.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state._registry import of_process
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.base import Beside, StateStore
from langchain_rwkv_state.store.disk import DIRECTORY_VARIABLE, LazyDiskStateStore
from langchain_rwkv_state.store.urls import StoreUrl, environment_url, is_url
from langchain_rwkv_state.store.verbs import StoreVerbs, Threads

if TYPE_CHECKING:
    from langchain_rwkv_state.store.pins import SharedPins

T = TypeVar("T")


def _passing_on(store: type[T]) -> type[T]:
    """Gives a class each verb that it does not write: it is passed on to the store, opened."""

    def passed(name: str) -> Callable[..., Any]:
        @functools.wraps(getattr(StoreVerbs, name))
        def verb(self: Any, *args: Any, **options: Any) -> Any:
            return getattr(self.opened(), name)(*args, **options)

        del verb.__isabstractmethod__  # type: ignore[attr-defined] # taken over from what it wraps
        return verb

    for name in getattr(store, "__abstractmethods__", ()):
        setattr(store, name, passed(name))
    return abc.update_abstractmethods(store)


@_passing_on
class LazyUrlStore(StateStore):
    """A store that opens at its first use.

    Args:
        url: Its name; ``None`` for what ``$RWKV_STATE_DIR`` names when it is opened.

    Raises:
        ValueError: The URL cannot be read, or names no store.
        StoreError, ImportError: At each use, where it cannot be opened.
    """

    def __init__(self, url: str | None) -> None:
        self._given = url
        self._url = StoreUrl.read(url) if url is not None else _of_environment()
        self._lock = ForkLock()
        self._store: StateStore | None = None
        self._closed = False

    @property
    def url(self) -> StoreUrl:
        """What it is named by."""
        return self._url

    @property
    def location(self) -> str | None:
        """See `StateStore.location`."""
        return None if self._given is None else self._url.shown

    def opened(self) -> StateStore:
        """Opens the store, if that was not done yet, and returns it.

        Raises:
            StoreError: It cannot be opened, or was closed.
            ImportError: An extra is missing; the message names it.
        """
        found = self._store
        if found is not None and not self._closed:
            return found
        with self._lock:
            if self._closed:
                raise StoreError("The store is closed: open it again to use it.")
            if self._store is None:
                opened = self._url.open()
                for name, kept in self.beside.items():
                    opened.beside.setdefault(name, kept)
                self._store = opened
            return self._store

    def or_memory(self) -> StateStore:
        """Returns this store: what is named by a URL is meant, and nothing takes its place."""
        return self

    @property
    def shares_pins(self) -> bool:
        """See `StateStore.shares_pins`."""
        return self._url.is_redis

    def shared_pins(self) -> SharedPins:
        """See `StateStore.shared_pins`."""
        return self.opened().shared_pins()

    def close(self) -> None:
        """See `StateStore.close`; a store that was not opened yet is not opened for it."""
        with self._lock:
            self._closed = True
            store = self._store
        if store is not None:
            store.close()
        own: Threads | None = self.__dict__.get("_threads_made")
        if own is not None:
            own.close()

    @property
    def _threads(self) -> Threads:
        """The store's threads; its own until it is open, so that no event loop waits for that."""
        return super()._threads if self._store is None else self._store._threads

    @property
    def beside(self) -> dict[str, Beside]:
        """See `StateStore.beside`: the process's for this URL, and once it is open the store's."""
        if self._store is not None:
            return self._store.beside
        found: dict[str, Beside] = of_process(("beside", self._url), dict)
        return found

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Opens the store for what only some stores have, such as `transcript`."""
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
            return getattr(self.opened(), name)

    def __repr__(self) -> str:
        return f"open_store({self._url.shown!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as its URL, password and all: where it arrives, it is opened anew."""
        return LazyUrlStore, (self._given,)


LazyStore = LazyDiskStateStore | LazyUrlStore
"""A store that was only named."""


def lazy_store(place: str | None) -> LazyStore:
    """Returns a store that is opened at its first use.

    Args:
        place: A directory or a URL; ``None`` for the user's own.

    Raises:
        ValueError: The URL cannot be read.
    """
    by_url = is_url(place) if place is not None else environment_url() is not None
    if by_url:
        made: Callable[..., LazyUrlStore] = LazyUrlStore  # its verbs come from `_passing_on`
        return made(place)
    return LazyDiskStateStore(place)


def _of_environment() -> StoreUrl:
    """Returns the user's own store.

    Raises:
        ValueError: It is named by no URL.
    """
    found = environment_url()
    if found is None:
        raise ValueError(f"{DIRECTORY_VARIABLE} names no store by a URL, as redis://HOST.")
    return found
