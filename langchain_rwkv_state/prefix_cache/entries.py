"""Defines what the prefix cache holds: states under namespaces. Plain values.

A state belongs to its model, to the state that reading began from, and to the salt of whoever
asked. Of a salt nothing but a digest is written anywhere.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from langchain_rwkv_state.prefix_cache.eviction import score
from langchain_rwkv_state.prefix_cache.radix_tree import Node
from langchain_rwkv_state.state import ZERO_ROOT, Derivation, RWKVState

if TYPE_CHECKING:
    from langchain_rwkv_state.prefix_cache.disk_tier import Row


_HIDDEN = "salt:"
_HIDDEN_SALT = re.compile(r"salt:[0-9a-f]{32}")


def base_name(derivation: Derivation) -> str:
    """Returns what a namespace calls the state that reading began from."""
    if derivation == Derivation(derivation.fingerprint):
        return ZERO_ROOT
    text = f"{derivation.root}|{derivation.n_tokens}|{derivation.token_hash}"
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Namespace:
    """Says which prompts may share states; each namespace has a tree of its own.

    Attributes:
        fingerprint: The model's.
        base: ``"zero"``, or a digest of the state that reading began from.
        salt: Digest of the tenant's salt, empty for none.
    """

    fingerprint: str
    base: str = ZERO_ROOT
    salt: str = ""

    @classmethod
    def of(cls, base: RWKVState, salt: str | None = None) -> Namespace:
        """Returns the namespace of prompts that are read from `base`."""
        return cls(base.fingerprint, base_name(base.derivation), salt_digest(salt))


@dataclass(frozen=True)
class CachedState:
    """A state as it is kept at one place of a tree.

    Attributes:
        state: The state.
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
        cached: The deepest state on the prompt's path.
        n_tokens: Number of the prompt's ids that it stands for.
        tier: Where it was: ``device``, ``ram`` or ``disk``.
    """

    cached: CachedState
    n_tokens: int
    tier: str


@dataclass(eq=False)
class Entry:
    """A cached state at a node of the tree, wherever its bytes are.

    Attributes:
        namespace: Its tree.
        node: Its place there.
        nbytes: Its size.
        has_logits: Whether the logits of the next token are with it.
        expires: Unix time; `math.inf` for never.
        private: Whether it must stay in memory.
        uses: How often it was used.
        pin: The name that it is pinned under, ``None`` for none.
        row: What the disk says of it, where it is there.
        useless: What the disk said, where it could not be loaded; it is removed there.
    """

    namespace: Namespace
    node: Node[Entry]
    nbytes: int
    has_logits: bool
    expires: float
    private: bool = False
    uses: int = 0
    pin: str | None = None
    row: Row | None = None
    useless: Row | None = None

    @property
    def saves(self) -> int:
        """Ids that it saves beside those of the next state above it."""
        above = next((node.depth for node in self.node.above() if node.value is not None), 0)
        return self.node.depth - above

    @property
    def score(self) -> float:
        """Its score: what it saved and may save, for the memory that it takes."""
        return score(self.saves, self.uses + 1, self.nbytes)


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
