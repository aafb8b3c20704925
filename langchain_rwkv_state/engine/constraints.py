"""Compiles constraints and chooses ids under them: what is allowed, forced, and canonical.

`Grammars` compiles for one tokenizer, once for equal constraints, on whatever thread asks. A
`Guide` is one request's: it says which ids come next, by the sampler's choice among those that the
grammar allows and that keep the answer in its canonical ids. It reads no state and calls no model.
The grammar's mask alone would not do: nine of ten answers at random then stand in other ids than
their text has, and would be read again.

How ids are kept canonical, for any tokenizer: behind a chosen id comes what the grammar forces, and
both are encoded with the last ids before them. If those change, the id is not chosen; if the id
alone grows (``"`` to ``","``), the longer one is; and where few are allowed next, and each would
change something, neither. The last resort is to read the answer again.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from langchain_rwkv_state._fork import in_forked_child
from langchain_rwkv_state.engine.request import Thought, common
from langchain_rwkv_state.engine.sampler import LogitsRow, Sampler
from langchain_rwkv_state.errors import EngineError, GrammarError, SchemaError
from langchain_rwkv_state.grammar.constraint import Constraint
from langchain_rwkv_state.grammar.json_schema import parts
from langchain_rwkv_state.tokenizer import Tokenizer

if TYPE_CHECKING:  # imported where the first grammar is compiled: most processes have none
    from llguidance import LLMatcher, LLTokenizer

Mask: TypeAlias = npt.NDArray[np.int32]

_KEPT = 256  # compiled constraints of one tokenizer
_FEW = 2048  # ids: the middle of a character has 64, that of a number up to a thousand or so
_WINDOW = 8  # ids before a choice that it is encoded with, at least
_NO_TEXT = b"\xff"  # stands before a special token's name, which no text can hold
_HINTS = {
    "oneOf": "its cases overlap: take anyOf, or give each case a property with another const",
    "Unsatisfiable": "nothing fits it: see which of its keywords contradict each other",
    "NoExtension": "nothing fits it: see which of its keywords contradict each other",
}


class Choice(NamedTuple):
    """The ids that come next, or the end.

    Attributes:
        ids: The chosen id, and those that are forced behind it; only these where `chosen` is 0.
        chosen: How many of them were sampled, 1 or 0.
        ended: Whether the answer ends here, whatever else the model would say.
    """

    ids: tuple[int, ...]
    chosen: int = 1
    ended: bool = False


class Grammars:
    """The constraints of one tokenizer, compiled. All methods may be called on any thread.

    Args:
        tokenizer: Of the ids.
        vocab_size: Number of the model's logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._vocabulary = _Vocabulary(tokenizer, vocab_size)
        self._lock = threading.Lock()
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()

    def prepare(self, constraint: Constraint) -> None:
        """Compiles a constraint, unless an equal one is.

        Raises:
            SchemaError: An answer cannot be held to it; the message says to what of it, and why.
        """
        if constraint.grammar:
            self._matcher(constraint.grammar)

    def guide(self, constraint: Constraint, thought: Thought | None = None) -> Guide:
        """Returns what guides one request; raises as `prepare` does."""
        grammar = constraint.grammar
        matcher = self._matcher(grammar) if grammar else None
        return Guide(self._vocabulary, constraint, matcher, thought)

    def _matcher(self, grammar: str) -> LLMatcher:
        """Returns a fresh matcher: a matcher is one thread's at a time, a copy is another's."""
        with self._lock:
            found = self._matchers.get(grammar)
            if found is not None:
                self._matchers.move_to_end(grammar)
                return found.deep_copy()
        matcher = _compiled(self._vocabulary.tables.ids, grammar)
        with self._lock:
            self._matchers[grammar] = matcher
            while len(self._matchers) > _KEPT:
                self._matchers.popitem(last=False)
            return matcher.deep_copy()

    def renew_lock(self) -> None:
        """Makes a forked child's copy usable: the parent's lock may have been held."""
        self._lock = threading.Lock()


def check_constraint(constraint: Constraint) -> None:
    """Says whether answers can be held to a constraint, where no model is at hand to try it on.

    Raises:
        SchemaError: They cannot; the message says to what of it, and why.
    """
    Grammars(_Bytes(), _Bytes.vocab_size).prepare(constraint)


class _Bytes:
    """The tokenizer of bytes: id 0 ends a text."""

    vocab_size = 257
    bos_id = None
    eos_ids = frozenset({0})
    identity = "bytes"

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(each - 1 for each in ids if each)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


class Guide:
    """Chooses the ids of one request under its constraint. One thread uses it.

    Args:
        vocabulary: The ids.
        constraint: What the answer is held to.
        matcher: A matcher of its grammar, for this guide alone.
        thought: How the thought is delimited that the answer stands behind.
    """

    def __init__(
        self,
        vocabulary: _Vocabulary,
        constraint: Constraint,
        matcher: LLMatcher | None,
        thought: Thought | None,
    ) -> None:
        self._vocabulary = vocabulary
        self._fresh = matcher
        self._free = _Free.before(constraint, thought)
        self._held: _Held | None = None
        if self._free.is_over and matcher is not None:
            self._held = _Held(vocabulary, matcher)

    @property
    def holds(self) -> bool:
        """Whether what comes next is held to the grammar."""
        return self._held is not None

    def mask(self) -> Mask | None:
        """Returns what the next id may be, before there are logits; ``None`` where none is chosen.

        It is what `choose` asks the sampler for first, the same array: who has chosen among it by
        then (`Sampler.chose`) has chosen for `choose`. ``None`` also where nothing is held to the
        grammar yet (`holds`), and all ids may be chosen.

        Raises:
            EngineError: The grammar grew beyond bounds, or allows no id.
        """
        return None if self._held is None else self._held.mask()

    def choose(self, row: LogitsRow, sampler: Sampler) -> Choice:
        """Chooses what comes next.

        Args:
            row: The logits.
            sampler: Chooses among what is allowed.

        Raises:
            EngineError: A logit is infinite or not a number, or the grammar grew beyond bounds.
        """
        if self._held is not None:
            return self._held.choose(row, sampler)
        allowed: Mask | None = None
        while True:
            token = sampler.choose(row, allowed)
            choice = self._free_choice(token)
            if choice is not None:
                return choice
            allowed = _without(self._vocabulary.all_ids() if allowed is None else allowed, token)

    def _free_choice(self, token: int) -> Choice | None:
        """Takes an id of free text; ``None`` where it must not come."""
        piece = self._vocabulary.tables.pieces[token]
        after = self._free.after(piece)
        if after is None:
            return None
        free, begun = after
        if begun is None:
            self._free = free
            return Choice((token,))
        matcher = self._open(begun)
        if matcher is None:
            return None
        whole = self._free.is_in_answer and piece[:1].isascii()
        held = _Held(self._vocabulary, matcher, (token,) if whole else ())
        self._held = held
        forced = held.forced()
        return Choice((token, *forced), ended=held.ended)

    def _open(self, begun: bytes) -> LLMatcher | None:
        """Returns a matcher that has read how the held part begins, if it may begin so."""
        if self._fresh is None:
            raise RuntimeError("There is no grammar to hold an answer to.")
        matcher = self._fresh.deep_copy()
        ids = [self._vocabulary.tables.single[byte] for byte in begun]
        return matcher if matcher.try_consume_tokens(ids) == len(ids) else None


@dataclass(frozen=True)
class _Free:
    """The part of an answer that is not held to the grammar, as far as it was said.

    Attributes:
        tag: What must come first, to complete a tag that the prompt leaves open.
        closing: What ends the thought; empty once it is over.
        holds: Whether all of the answer is held, and so only tag and thought are free.
        triggers: What the held part begins with.
        forbid: What must not be said.
        tail: The last bytes, in which one of these may have begun.
    """

    tag: bytes
    closing: bytes
    holds: bool
    triggers: tuple[bytes, ...]
    forbid: tuple[bytes, ...]
    tail: bytes = b""

    @classmethod
    def before(cls, constraint: Constraint, thought: Thought | None) -> _Free:
        """Returns the free part that a constrained answer begins with."""
        closing = thought.closing.encode() if thought else b""
        return cls(
            tag=thought.opening.encode() if thought and not closing else b"",
            closing=closing,
            holds=bool(constraint.grammar and not constraint.triggers),
            triggers=tuple(text.encode() for text in constraint.triggers),
            forbid=tuple(text.encode() for text in constraint.forbid),
        )

    @property
    def is_over(self) -> bool:
        """Whether the held part begins with what comes next."""
        return self.holds and self.is_in_answer

    @property
    def is_in_answer(self) -> bool:
        """Whether tag and thought are over, so that the ids before stand in the answer."""
        return not self.tag and not self.closing

    def after(self, piece: bytes) -> tuple[_Free, bytes | None] | None:
        """Returns what comes of the next piece: the free part after it, and how the held begins.

        ``None`` where the piece must not be said.
        """
        text, now = self.tail + piece, self
        if self.tag and len(text) < len(self.tag) and self.tag.startswith(text):
            return replace(self, tail=text), None
        if self.tag:
            if not text.startswith(self.tag):
                return None
            text, now = text[len(self.tag) :], replace(self, tag=b"")
        if self.closing:
            at = text.find(self.closing)
            if at < 0:
                return replace(self, tail=_last(text, len(self.closing) - 1)), None
            text, now = text[at + len(self.closing) :], replace(self, closing=b"")
        if self.holds:
            return now, text
        if any(each in text for each in self.forbid):
            return None
        begun = [(text.find(each) + len(each), text.find(each)) for each in self.triggers]
        found = min((place for place in begun if place[1] >= 0), default=None)
        if found is not None:
            return now, text[found[1] :]
        watched = max(map(len, (*self.triggers, *self.forbid)))
        return replace(now, tail=_last(text, watched - 1)), None


class _Held:
    """The part of an answer that is held to the grammar.

    Args:
        vocabulary: The ids.
        matcher: Stands where the answer does; used by nobody else.
        before: The id that the held part begins in, if it does not begin with one.
    """

    def __init__(
        self, vocabulary: _Vocabulary, matcher: LLMatcher, before: Sequence[int] = ()
    ) -> None:
        self._vocabulary = vocabulary
        self._pieces = vocabulary.tables.pieces
        self._matcher = matcher
        # The last ids, which are canonical on their own, and their bytes.
        self._recent = _Recent(list(before), b"".join(self._pieces[token] for token in before))
        self._mask: bytes | None = None
        self._offered: Mask | None = None
        self._begun = bool(before)
        self._forced: list[int] = []  # ids that are said, and were not told yet

    @property
    def ended(self) -> bool:
        """Whether nothing more can be said."""
        return self._matcher.is_stopped()

    def mask(self) -> Mask | None:
        """Returns what the next id may be; ``None`` where it is forced, or the answer over."""
        if not self._begun:
            self._forced = self.forced()
        if self._forced:
            return None
        if self._offered is None:
            allowed = self._allowed()
            if allowed != self._vocabulary.nothing:
                self._offered = np.frombuffer(allowed, dtype=np.int32)
            elif not self._matcher.is_accepting():  # where no id of the model's ends a text
                raise EngineError("The grammar allows no id of the model's here.")
        return self._offered

    def choose(self, row: LogitsRow, sampler: Sampler) -> Choice:
        """Chooses an id, and those that are forced behind it."""
        allowed, self._offered = self.mask(), None
        if allowed is None:
            forced, self._forced = self._forced, []
            return Choice(tuple(forced), chosen=0, ended=self.ended or not forced)
        first: int | None = None
        while first is None or allowed.any():
            token = sampler.choose(row, allowed)
            if token in self._vocabulary.ends:
                return Choice((token,), ended=True)
            first = token if first is None else first
            ids = self._try(token)
            if ids is not None:
                return Choice(tuple(ids), ended=self.ended)
            allowed = _without(allowed, token)
        # Nothing is canonical here: the answer will be read again, and goes on nevertheless.
        self._consume([first])
        self._recent = _Recent([], b"")
        return Choice((first, *self.forced()), ended=self.ended)

    def forced(self) -> list[int]:
        """Says what the grammar forces, as far as its ids are sure, and returns it."""
        self._begun = True
        if self.ended:
            return []
        ids = self._matcher.compute_ff_tokens()
        whole = self._recent.bytes + b"".join(self._pieces[token] for token in ids)
        found = self._vocabulary.encode(whole.decode(errors="ignore")) if ids else []
        all_ids = [*self._recent.ids, *ids]
        agreed = len(all_ids) if found[: len(all_ids)] == all_ids else common(found, all_ids)
        sure = ids[: max(agreed - len(self._recent.ids), 0)]
        if sure:
            self._consume(sure)
            self._add(sure)
        return sure

    def _try(self, token: int) -> list[int] | None:
        """Says an id and what it forces; ``None``, and nothing said, where it must not come."""
        before = self._recent
        self._consume([token])
        behind = self._matcher.compute_ff_bytes()
        longer = self._fits(token, behind)
        if longer is None:
            self._roll_back(1)
            return None
        if longer != token:
            self._roll_back(1)
            self._consume([longer])
        self._begun = True
        self._add([longer])
        ids = [longer, *(self.forced() if behind else ())]
        if not self.ended and self._is_dead_end():
            self._roll_back(len(ids))
            self._recent = before
            return None
        return ids

    def _fits(self, token: int, forced: bytes) -> int | None:
        """Returns the id to say for `token`, longer where it grows; ``None`` where it must not.

        Args:
            token: An id that the grammar allows.
            forced: What must come behind it.
        """
        recent, known = self._recent.ids, len(self._recent.ids)
        piece = self._pieces[token]
        whole = self._recent.bytes + piece + forced
        text = whole.decode(errors="ignore")
        found = self._vocabulary.encode(text)
        if known < len(found) and found[:known] == recent:
            if found[known] == token:
                return token
            grown = self._pieces[found[known]]
            if len(grown) > len(piece) and (piece + forced).startswith(grown):
                return found[known]
        # The end of a character that is not complete yet: nothing is known of its id.
        missing = len(whole) - len(text.encode())
        if not missing:
            return None
        ids = [*recent, token]
        at = sum(len(self._pieces[each]) for each in ids[: common(found, ids) + 1])
        return token if at > len(whole) - missing else None

    def _is_dead_end(self) -> bool:
        """Says whether few ids are allowed next, and each would change ids that were said."""
        allowed, ends = self._allowed(), self._vocabulary.ends
        if int.from_bytes(allowed[:_FEW], "little").bit_count() > _FEW:
            return False  # as in a text, where there is no need to count further
        left = int.from_bytes(allowed, "little")
        if left.bit_count() > _FEW or self._matcher.is_accepting():
            return False
        while left:
            token = (left & -left).bit_length() - 1
            if token in ends or (self._fits(token, b"") is not None and self._goes_on(token)):
                self._mask = allowed
                return False
            left &= left - 1
        return True

    def _goes_on(self, token: int) -> bool:
        """Says whether something can follow an id, where that ends within a character."""
        before = self._recent
        known = before.bytes + self._pieces[token]
        try:
            known.decode()
        except UnicodeDecodeError:
            self._consume([token])
            self._recent = _Recent([*before.ids, token], known)
            ends_here = self._is_dead_end()
            self._roll_back(1)
            self._recent = before
            return not ends_here
        return True

    def _add(self, ids: list[int]) -> None:
        """Takes note of what was said, and lets go of what lies far behind."""
        pieces = self._pieces
        self._recent = recent = _Recent(
            [*self._recent.ids, *ids], self._recent.bytes + b"".join(pieces[each] for each in ids)
        )
        if len(recent.ids) <= 2 * _WINDOW:
            return
        last = recent.ids[-_WINDOW:]
        known = b"".join(pieces[each] for each in last)
        try:
            found = self._vocabulary.encode(known.decode())
        except UnicodeDecodeError:
            return
        if found == last:
            self._recent = _Recent(last, known)

    def _allowed(self) -> bytes:
        """Returns the ids that the grammar allows, a bit each."""
        if self._mask is None:
            self._mask = self._vocabulary.cut(self._matcher.compute_bitmask())
            self._check()
        return self._mask

    def _consume(self, ids: list[int]) -> None:
        self._mask = None
        self._matcher.consume_tokens(ids)
        self._check()

    def _roll_back(self, count: int) -> None:
        self._mask = None
        self._matcher.rollback(count)
        self._check()

    def _check(self) -> None:
        """Raises what the matcher met: it would allow nothing but the end from now on."""
        if self._matcher.is_error():
            raise GrammarError(
                f"An answer could not be held to its grammar: {_reason(self._matcher)}. Simplify "
                "the schema (shorter bounds, fewer choices)."
            )


class _Recent(NamedTuple):
    """The last ids of an answer."""

    ids: list[int]
    bytes: bytes


class _Vocabulary:
    """Ids as bytes, and the ids of texts.

    Args:
        tokenizer: Of the ids.
        vocab_size: Number of the model's logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._named = _Named(tokenizer, vocab_size)
        self._n_words = -(-vocab_size // 32)
        self._beyond = vocab_size % 32
        self.nothing = bytes(4 * self._n_words)
        self.encode = tokenizer.encode
        self.ends = tokenizer.eos_ids

    @functools.cached_property
    def tables(self) -> _Tables:
        """What is known of each id; made at first use, once a process."""
        with _lock:
            return _make_tables(self._named)

    def all_ids(self) -> Mask:
        """Returns a mask that allows every id."""
        return np.full(self._n_words, -1, dtype=np.int32)

    def cut(self, allowed: bytes) -> bytes:
        """Returns a bit for each of the model's ids, in whole words."""
        if len(allowed) == 4 * self._n_words and not self._beyond:
            return allowed
        words = np.frombuffer(allowed, dtype=np.uint32)[: self._n_words].copy()
        if self._beyond:
            words[-1] &= np.uint32((1 << self._beyond) - 1)
        return words.tobytes()


class _Named:
    """A tokenizer by its vocabulary, for what is made once a process."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._key = (tokenizer.identity, tokenizer.vocab_size, vocab_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class _Tables(NamedTuple):
    """A vocabulary.

    Attributes:
        ids: As llguidance knows it.
        pieces: The bytes of each id; special and unknown ones have none.
        single: The id of each byte.
    """

    ids: LLTokenizer
    pieces: list[bytes]
    single: list[int]


class _Description:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, named: _Named, pieces: list[bytes]) -> None:
        # Where no id ends a text, one beyond the model's does, which is never chosen.
        self.special_token_ids = sorted(named.tokenizer.eos_ids) or [len(pieces)]
        self.tokens = [*pieces, *([b""] * (self.special_token_ids[-1] + 1 - len(pieces)))]
        for token in self.special_token_ids:
            self.tokens[token] = _NO_TEXT + b"<|end|>"
        self.eos_token_id = self.special_token_ids[0]
        self.bos_token_id = None
        self._encode = named.tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())


@functools.lru_cache(maxsize=8)
def _make_tables(named: _Named) -> _Tables:
    """Describes a vocabulary: 20 MB and half a second for one of World's size."""
    from llguidance import LLTokenizer, TokenizerWrapper

    tokenizer, known = named.tokenizer, named.tokenizer.vocab_size
    pieces = [tokenizer.decode_bytes((token,)) for token in range(known)]
    pieces += [b""] * (named.vocab_size - known)
    by_bytes = {piece: token for token, piece in enumerate(pieces)}
    lacking = [byte for byte in range(256) if bytes([byte]) not in by_bytes]
    # UTF-8 has no use for some; a tokenizer may know whole characters instead of others.
    if lacking and min(lacking) < 0x80:
        raise EngineError(
            f"The tokenizer {tokenizer!r} has no id for the byte {lacking[0]:#04x}, which a "
            "constraint needs: take a byte-level one."
        )
    described = _Description(named, pieces)
    return _Tables(
        LLTokenizer(TokenizerWrapper(described), eos_token=described.special_token_ids),
        pieces,
        [by_bytes.get(bytes([byte]), 0) for byte in range(256)],
    )


_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock  # the parent may have held it when it forked
    _lock = threading.Lock()


in_forked_child(_renew_lock)


def _compiled(tables: LLTokenizer, grammar: str) -> LLMatcher:
    """Compiles a grammar and tries it: some that compile fail at their first mask."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tables, grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise SchemaError(_refusal(tables, grammar, matcher))
    matcher.reset()
    return matcher


def _refusal(tables: LLTokenizer, grammar: str, matcher: LLMatcher) -> str:
    """Says why a grammar was refused, and which part of which schema is to blame."""
    from llguidance import LLMatcher

    where, reason = "the grammar", _reason(matcher)
    for part, schema in _schemas(grammar):
        tried = LLMatcher(tables, f"start: %json {json.dumps(schema)}", log_level=0)
        if not tried.is_error():
            tried.compute_bitmask()
        if tried.is_error():
            where, reason = part, _reason(tried)
    hint = next((hint for key, hint in _HINTS.items() if key in reason), "leave that out")
    return f"An answer cannot be held to {where}: {reason}. What to do: {hint}."


def _schemas(grammar: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the schemas in a grammar, and their parts, each on its own; the inner ones last."""
    for line in grammar.splitlines():
        name, _, text = line.partition(": %json ")
        if not text:
            continue
        root = json.loads(text)
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        for place, part in parts(root):
            yield f"the schema of {name!r} at {place!r}", {**shared, **part}


def _reason(matcher: LLMatcher) -> str:
    """Returns the line of an error that says what is wrong."""
    lines = [line.strip() for line in matcher.get_error().splitlines()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    first = lines[0].partition("failed to compile JSON schema: ")
    return (said or [first[2] or first[0]])[0].rstrip(".:")


def _last(text: bytes, count: int) -> bytes:
    return text[max(len(text) - count, 0) :]


def _without(mask: Mask, token: int) -> Mask:
    """Returns a copy of a mask that does not allow an id."""
    left = mask.copy()
    left.view(np.uint32)[token >> 5] &= np.uint32(~(1 << (token & 31)) & 0xFFFFFFFF)
    return left
