"""What a prefix cache keeps and what it says of itself: plain values.

The easy mistake is to compare roots by model alone: a state belongs to its model, to the state
that reading began from, and to the salt of whoever asked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from langchain_rwkv_state.state import ZERO_ROOT, Derivation, RWKVState

Cause = Literal[
    "cold", "different", "evicted", "expired", "corrupt", "other model", "other base", "other salt"
]
"""Why a prompt found nothing. ``cold``: nothing that begins like it was read yet; ``different``:
its ids part from those of every kept state before that state's end."""


_HIDDEN = "salt:"
_HIDDEN_SALT = re.compile(r"salt:[0-9a-f]{32}")


@dataclass(frozen=True)
class Root:
    """Where a tree of prompts begins.

    Attributes:
        fingerprint: The model's.
        base: ``"zero"``, or a digest of the state that reading began from.
        salt: Digest of the tenant's salt, empty for none.
    """

    fingerprint: str
    base: str = ZERO_ROOT
    salt: str = ""

    @classmethod
    def of(cls, base: RWKVState, salt: str | None = None) -> Root:
        """Returns the root of prompts that are read from `base`."""
        derivation = base.derivation
        name = ZERO_ROOT
        if derivation != Derivation(derivation.fingerprint):
            text = f"{derivation.root}|{derivation.n_tokens}|{derivation.token_hash}"
            name = hashlib.sha256(text.encode()).hexdigest()
        return cls(derivation.fingerprint, name, salt_digest(salt))


def hidden_salt(salt: str) -> str:
    """Returns a salt in a form that may be seen: in a repr, a pickle, a trace.

    It keeps apart what the salt itself keeps apart, and hiding it again changes nothing.

    Example:
        >>> hidden_salt("tenant")
        'salt:1597ed261d4a2146280efb1e9d548f75'
        >>> hidden_salt(hidden_salt("tenant")) == hidden_salt("tenant")
        True
    """
    return _HIDDEN + salt_digest(salt)


def salt_digest(salt: str | None) -> str:
    """Returns the digest under which a salt is known; the salt itself is written nowhere."""
    if not salt:
        return ""
    if _HIDDEN_SALT.fullmatch(salt):
        return salt.removeprefix(_HIDDEN)
    return hashlib.blake2b(
        salt.encode("utf-8", "surrogatepass"), digest_size=16, person=b"rwkv-salt"
    ).hexdigest()


@dataclass(frozen=True)
class Kept:
    """What is kept at one place of a tree.

    Attributes:
        state: The state there.
        logits: Those of the next token (``[V]``, fp32, on the CPU), where they are known: with
            them a prompt that ends here is answered without reading anything.
    """

    state: RWKVState
    logits: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.state.nbytes + (0 if self.logits is None else self.logits.nbytes)


@dataclass(frozen=True)
class Hit:
    """What a lookup found.

    Attributes:
        kept: The deepest state on the prompt's path.
        n_tokens: Number of the prompt's ids that it stands for.
        tier: Where it was: ``device``, ``ram`` or ``disk``.
    """

    kept: Kept
    n_tokens: int
    tier: str


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
        shared: Prompts that waited for another one, in flight, which was reading the same.
        entries: States held, in whatever tier.
        pinned: Names of pinned entries.
        nbytes: Bytes by tier.
        budgets: The most bytes by tier.
        evictions: States that had to leave a tier for others, by tier.
        expired: States whose time ran out.
        corrupt: Entries on disk that were damaged or foreign; they were removed.
        errors: Times that the disk could not be used; each was a miss.
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
