"""Says how a state came to be: the model, the root it started from, and the tokens read since.

A derivation names a state by its history, as a git commit names a tree: two ways of reading one
text have one derivation. It is not a checksum of the state's numbers (floats differ in the last
digits by path). It is not keyed, so it is not published: whoever sees it can test a guessed text
against it. A store turns it into a keyed reference (`reference`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

ZERO_ROOT = "zero"
"""Root of every state that was read from the zero state."""

_REF = re.compile(r"rwkv1-[0-9a-f]{64}")
_EMPTY = "0" * 64


@dataclass(frozen=True)
class Derivation:
    """Model, root and running hash of the token ids read since the root.

    Attributes:
        fingerprint: Fingerprint of the model, tokenizer, template and compute dtype.
        root: ``"zero"``, or a digest that names what the state was made from instead (a donor
            file, a blend, a lossy copy).
        n_tokens: Number of tokens read since the root, plus those that the root stands for.
        token_hash: Hex SHA-256 chain over the ids read since the root.

    Example:
        >>> start = Derivation("model")
        >>> start.read([1, 2]).read([3]) == start.read([1, 2, 3])
        True
    """

    fingerprint: str
    root: str = ZERO_ROOT
    n_tokens: int = 0
    token_hash: str = _EMPTY

    def read(self, tokens: Iterable[int]) -> Derivation:
        """Returns the derivation after reading more tokens, in one go or in turns."""
        digest, count = bytes.fromhex(self.token_hash), 0
        for token in tokens:
            digest = hashlib.sha256(digest + int(token).to_bytes(4, "little")).digest()
            count += 1
        return replace(self, n_tokens=self.n_tokens + count, token_hash=digest.hex())

    def rooted(self, operation: str) -> Derivation:
        """Returns the derivation of a state that an operation made of this one.

        Blending, decay and lossy codecs give states that no text leads to; each gets a root of
        its own, so that its reference never stands for the exact state.

        Args:
            operation: A text that names the operation with all its parameters.
        """
        origin = f"{self.root}|{self.n_tokens}|{self.token_hash}|{operation}"
        root = hashlib.sha256(origin.encode()).hexdigest()
        return replace(self, root=root, token_hash=_EMPTY)


def reference(derivation: Derivation, key: bytes) -> str:
    """Returns the keyed reference of a derivation.

    Args:
        derivation: What the state was made from.
        key: The store's secret, at most 64 bytes.

    Returns:
        A JSON-safe string of the pattern ``rwkv1-[0-9a-f]{64}``.
    """
    text = "\x00".join(
        (derivation.fingerprint, derivation.root, str(derivation.n_tokens), derivation.token_hash)
    )
    digest = hashlib.blake2b(
        text.encode(), key=key, digest_size=32, person=b"rwkv-state-ref"
    ).hexdigest()
    return f"rwkv1-{digest}"


def is_reference(text: object) -> bool:
    """Says whether a value has the form of a state reference."""
    return isinstance(text, str) and _REF.fullmatch(text) is not None
