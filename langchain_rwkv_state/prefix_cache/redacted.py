"""Says which entries of a prefix cache stand on turns that were taken out of a session.

Values in, yes or no out. An entry says what it was read from by a digest alone, so the digests of
all states along the conversation are made and compared. A cache may forget anything, so where it
is not certain an entry goes, as behind a state that is not on the way: it may be a fork's. But not
a pinned one, which somebody wants.
"""

from __future__ import annotations

from langchain_rwkv_state.prefix_cache.entries import Namespace, base_name
from langchain_rwkv_state.prefix_cache.radix_tree import common_ids, pack
from langchain_rwkv_state.state import ZERO_ROOT
from langchain_rwkv_state.store.redacted_ids import RedactedIds

_WIDTH = 4  # bytes of an id in a key
_SHARE = 2  # an entry goes that shares a half of a turn's ids and goes on otherwise


class StandsOn:
    """Tells entries by their namespaces and keys.

    Args:
        redacted: What was taken out.
    """

    def __init__(self, redacted: RedactedIds) -> None:
        self._fingerprint = redacted.base.fingerprint
        self._cuts = redacted.cuts
        self._line = pack(redacted.tokens)
        self._runs = [pack(redacted.tokens[start:end]) for start, end in redacted.cuts]
        derivation = redacted.base
        self._bases = {base_name(derivation): 0}
        for at, token in enumerate(redacted.tokens, 1):
            derivation = derivation.read([token])
            self._bases[base_name(derivation)] = at

    def __call__(self, namespace: Namespace, key: bytes, *, pinned: bool) -> bool:
        """Says whether an entry is to go."""
        if namespace.fingerprint != self._fingerprint:
            return False
        at = self._bases.get(namespace.base)
        if at is None:  # of another conversation, or of a fork that went on from here
            known = namespace.base == ZERO_ROOT  # then the key holds all that was read
            return not pinned and (not known or any(_holds(key, run) for run in self._runs))
        shared = at + common_ids(key, self._line[at * _WIDTH :])
        on_the_line = shared == at + len(key) // _WIDTH
        for start, end in self._cuts:
            if at > start or shared >= end:
                return True
            enough = shared > start if on_the_line else shared - start >= (end - start) / _SHARE
            if enough and not pinned:
                return True
        return False


def _holds(key: bytes, run: bytes) -> bool:
    """Says whether ids stand in a key, one after the other."""
    at = -1
    while (at := key.find(run, at + 1)) >= 0:
        if at % _WIDTH == 0:
            return True
    return False
