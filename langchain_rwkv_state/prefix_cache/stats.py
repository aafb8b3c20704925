"""Tells what the prefix cache did, in numbers, and why a prompt found nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from langchain_rwkv_state.prefix_cache.entries import Entry, Namespace
from langchain_rwkv_state.prefix_cache.radix_tree import Path, RadixTree

Cause = Literal[
    "cold", "different", "evicted", "expired", "corrupt", "other model", "other base", "other salt"
]
"""Why a prompt found nothing. ``cold``: nothing that begins like it was read yet; ``different``:
its ids part from those of every cached state before that state's end."""


@dataclass(frozen=True)
class Explanation:
    """What the cache knows of a prompt.

    Attributes:
        n_tokens: Number of the prompt's ids.
        reused: How many of them a lookup saves.
        known: How many of them lie on a path that was read before.
        cause: Why not all are saved; ``None`` where they are.
        text: The same in a sentence.
    """

    n_tokens: int
    reused: int
    known: int
    cause: Cause | None
    text: str


@dataclass(frozen=True)
class CacheStats:
    """What a prefix cache did, and what it holds.

    Attributes:
        lookups: Prompts looked up.
        hits: Those of which some beginning was found.
        misses: Those of which none was, by cause.
        tokens_asked: Ids of all prompts looked up.
        tokens_saved: Ids of them that need not be read.
        shared: Prompts that waited for another one, which was reading what they begin with.
        entries: States held, in whatever tier.
        pinned: Names of pinned entries.
        nbytes: Bytes by tier.
        budgets: The most bytes by tier.
        evictions: States that had to leave a tier for others, by tier.
        expired: States whose time ran out.
        corrupt: Entries on disk that were damaged or foreign; they were removed.
        errors: Times that the disk or the shared store could not be used; each was a miss.
    """

    lookups: int = 0
    hits: int = 0
    misses: Mapping[str, int] = field(default_factory=dict)
    tokens_asked: int = 0
    tokens_saved: int = 0
    shared: int = 0
    entries: int = 0
    pinned: tuple[str, ...] = ()
    nbytes: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[str, int] = field(default_factory=dict)
    evictions: Mapping[str, int] = field(default_factory=dict)
    expired: int = 0
    corrupt: int = 0
    errors: int = 0


def cause_here(path: Path[Entry], reused: int) -> Cause:
    """Says why not more of a prompt was found, by what its own namespace knows.

    Other tenants' trees are looked at for people alone (`cause_elsewhere`), and never on the way of
    a request: how long that takes says what they hold.

    Args:
        path: The prompt's.
        reused: Number of its ids that are saved.
    """
    for node in reversed(path.nodes):
        if node.depth > reused and node.gone in ("evicted", "expired", "corrupt"):
            found: Cause = node.gone  # type: ignore[assignment]
            return found
    return "different" if path.known > reused or reused else "cold"


def cause_elsewhere(
    tree: RadixTree[Entry], namespace: Namespace, key: bytes, beyond: int = 0
) -> Cause | None:
    """Says under which other namespace more of a prompt is kept, ``None`` for none."""
    for other in tree.roots:
        if not isinstance(other, Namespace) or other == namespace:
            continue
        found = tree.find(other, key).with_values()
        if not found or found[0].depth <= beyond:
            continue
        if other.fingerprint != namespace.fingerprint:
            return "other model"
        return "other salt" if other.base == namespace.base else "other base"
    return None


def sentence(size: int, reused: int, known: int, cause: Cause | None) -> str:
    """Returns in words how much of a prompt is kept, and why not more.

    Args:
        size: Number of its ids.
        reused: How many of them a lookup saves.
        known: How many of them lie on a path that was read before.
        cause: Why not all are saved; ``None`` where they are.
    """
    begun = f"{reused} of {size} tokens are kept"
    if cause is None:
        return f"{begun}: nothing has to be read."
    return (
        f"{begun}; "
        + {
            "cold": "nothing that begins like it was read yet.",
            "different": f"the prompt differs from what was read from token {known} on.",
            "evicted": "more was kept, and had to go for other states: give the cache more bytes.",
            "expired": "more was kept, and its time ran out: give it a longer ttl, or pin it.",
            "corrupt": "more was kept, and was damaged on the disk; it was removed.",
            "other model": "it is kept for another model, tokenizer, template or dtype.",
            "other base": "it is kept behind another state than the one that reading begins from.",
            "other salt": "it is kept under another cache_salt.",
        }[cause]
    )
