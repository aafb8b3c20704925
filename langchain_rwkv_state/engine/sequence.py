"""Follows one request on the worker: what the model must read next, and what came of it.

A sequence never calls the model. It says how many ids it would read (`wanted`), is told how many
were read (`advance`), and is shown the logits when it asks for them (`sample`); prefill, decoding
and re-reading differ in nothing else, so that a worker may interleave sequences as it likes. The
slot's state is not the answer's: it has read what was sampled, which may be more than the text that
the caller saw, or other ids than that text has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

import torch

from langchain_rwkv_state.engine.answer import Answer
from langchain_rwkv_state.engine.constraints import Choice, Guide
from langchain_rwkv_state.engine.logprobs import LogprobLedger
from langchain_rwkv_state.engine.request import (
    Delta,
    Done,
    FinishReason,
    Request,
    check_ids,
    common,
)
from langchain_rwkv_state.engine.request_handle import RequestHandle
from langchain_rwkv_state.engine.sampler import LogitsRow, Sampler
from langchain_rwkv_state.engine.slots import SlotPool, Snapshot
from langchain_rwkv_state.errors import DeadlineExceeded
from langchain_rwkv_state.prefix_cache import Hit
from langchain_rwkv_state.prefix_cache.prefix import Prefix
from langchain_rwkv_state.runtime.sampling import Words
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import StreamDecoder, Tokenizer

_RENEWED = 16  # ids after which the copy behind a held-back text is renewed; a copy costs megabytes


class _Phase(Enum):
    PREFILL = auto()
    REPLAY = auto()  # of what it had said when it lost its slot
    DECODE = auto()
    SETTLE = auto()


class TokenSequence:
    """Keeps what one request has read, sampled and said, from its coming to its end.

    Args:
        request: What is asked for.
        tokenizer: Turns sampled ids into text.
        handle: Takes the events.
        slots: The slots that it runs in.
        vocab_size: Number of ids that the model knows.
        guide: Chooses the ids of an answer that is held to a constraint.

    Attributes:
        handle: Takes the events.
        prefix: Its dealings with the prefix cache, ``None`` where there are none.
        snapshots: Positions in the prompt, still to come, at which its state is copied.
        pending_prefix: The running sequence whose snapshot this one waits for, and its position.
        asked: Whether running sequences were asked for snapshots that this one could begin at.
        last_step: The step in which it read last, or was admitted.
        submitted: When it came, on the monotonic clock.
        deadline: When it is to end, on that clock, whatever has come of it.
        n_prompt_read: Number of the prompt's ids read, without those that the cache saved, and
            with those that were read again because the slot was lost.
        n_sampled: Number of ids of the answer, the forced ones too.
        n_forced: How many of them were forced.
        reread: Whether the answer is read again in its canonical ids.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        handle: RequestHandle,
        slots: SlotPool,
        vocab_size: int,
        guide: Guide | None = None,
    ) -> None:
        self.handle = handle
        self._leaves = False  # with all that there is to say said
        self.prefix = _prefix(request)
        self.snapshots = set(request.checkpoints)
        self.pending_prefix: tuple[TokenSequence, int] | None = None
        self.asked = False
        self.last_step = 0
        self.submitted = time.monotonic()
        self.deadline = math.inf if request.deadline is None else self.submitted + request.deadline
        self.n_prompt_read = 0
        self.n_sampled = 0
        self.n_forced = 0
        self.reread = False
        self._request = request
        self._slots = slots
        self._slot: int | None = None
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._sampler = Sampler(request.sampling)
        self._guide = guide
        self._decoder = StreamDecoder()
        self._answer = Answer(request)
        self._logprobs: LogprobLedger | None = None
        if request.logprobs is not None:
            self._logprobs = LogprobLedger(request.logprobs, tokenizer, self._answer)
        self._settled = request.prompt if request.settled is None else request.settled
        self._ids: list[int] = []
        self._n_thought = 0
        self._checkpoints: dict[int, RWKVState] = {}
        self._reused: int | None = None  # ids of the prompt that the cache saved at first
        self._progress = 0  # ids of the prompt, as far as the caller was told
        self._logits: torch.Tensor | None = None  # behind the whole prompt, from the cache
        # Fetches the state behind the prompt for the cache, once its logits are seen.
        self._end_state: Callable[[], RWKVState] | None = None
        # Copies of the state, with the number of ids (the prompt's and sampled ones) that each has
        # read: where the settled ids part from the prompt, after the prompt, and, last, before the
        # first id whose text is held back, since the answer may end there.
        self._copies: list[tuple[int, Snapshot]] = []
        self._marked: dict[int, Snapshot] = {}  # by position, copies that nobody has yet
        self._n_firm = 0  # copies that stay whatever is held back
        self._n_read = 0  # ids, the prompt's and sampled ones, that the slot's own state has read
        # Whether what is read behind the prompt can stand in the state behind the answer.
        self._lasts = request.common == min(len(request.prompt), len(self._settled)) and not (
            request.thought and request.thought.asked and not request.thought.keep
        )
        # Positions where the state behind the answer may have to begin anew.
        self._firm: set[int] = set()
        if request.max_tokens:
            self._firm.add(request.common)
            if self._lasts:
                self._firm.add(len(request.prompt))
        self.snapshots |= self._firm
        self._finish_reason: FinishReason = "length"
        self._answer_ids: tuple[int, ...] = ()
        self._read(_Phase.PREFILL, request.prompt)

    @property
    def slot(self) -> int:
        """The slot of its state, from `begin` on where there is something to read."""
        if self._slot is None:
            raise RuntimeError("The request has no slot.")
        return self._slot

    def choice_ahead(self) -> tuple[Sampler, Words | None] | None:
        """Returns who chooses the next id, by the next logits alone, and among which ids.

        ``None`` where it is not chosen, or nobody knows by now; `sample` says what comes then.
        """
        guide = self._guide
        if guide is None or not guide.holds:
            return self._sampler, None
        mask = guide.mask()
        return None if mask is None else (self._sampler, mask)

    @property
    def over(self) -> bool:
        """Whether it reads no more: it has ended, or its caller has let go of it."""
        return self._leaves or self.handle.over

    @property
    def prefills(self) -> bool:
        """Whether it reads its prompt."""
        return self._phase is _Phase.PREFILL

    @property
    def decodes(self) -> bool:
        """Whether it reads what was sampled last, and what was forced behind it."""
        return self._phase is _Phase.DECODE

    @property
    def wanted(self) -> int:
        """Number of ids that it would read in one go, at least one."""
        end = len(self._unread)
        if self._phase is _Phase.PREFILL and self.snapshots and not self._slots.can_mark:
            end = min([end, *(at for at in self.snapshots if at > self._at)])
        return end - self._at

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns its ids into text."""
        return self._tokenizer

    @property
    def runs_on(self) -> bool:
        """Whether another id is sure to be sampled behind the next one, unless that ends it."""
        if self._guide is not None or self.over:
            return False
        return self.n_sampled + 1 < self._request.max_tokens

    def samples_after(self, count: int) -> bool:
        """Says whether the next id is to be sampled once so many ids are read."""
        ends = self._at + count == len(self._unread) and self._phase is not _Phase.SETTLE
        replays = self.prefills and bool(self._ids)
        return ends and not replays and self._request.max_tokens > 0

    @property
    def may_want_logits(self) -> bool:
        """Whether the next logits may be asked for though the next id is chosen without."""
        cached = self.prefills and self.prefix is not None
        return self._guide is not None or cached or self.wants_logprobs

    @property
    def wants_logprobs(self) -> bool:
        """Whether the logits are asked for behind every id, whoever chooses it."""
        return self._logprobs is not None

    def marks(self, count: int) -> tuple[int, ...]:
        """Returns after how many of the next `count` ids the state is to be kept."""
        if self._phase is not _Phase.PREFILL:
            return ()
        return tuple(sorted(at - self._at for at in self.snapshots if 0 < at - self._at <= count))

    def keeps_later(self, at: int) -> bool:
        """Says whether the prefix cache is still to get the state at a position."""
        coming = at in self.snapshots or (
            self._end_state is not None and at == len(self._request.prompt)
        )
        return coming and not self.over

    def can_keep(self, at: int) -> bool:
        """Says whether the state at a position can still be copied for the prefix cache."""
        if self.prefix is None or self.over or not self.prefills or at <= self._at:
            return False
        return self.prefix.wants(at)

    def expire(self) -> None:
        """Ends the request, whose deadline has passed."""
        waits = self._slot is None and not self.n_sampled
        stage = "while it waited" if waits else f"after {self.n_sampled} tokens"
        self.handle.fail(
            DeadlineExceeded(
                f"The request's deadline of {self._request.deadline} s passed {stage}: ask again "
                "when there is less to do, or give it more time."
            )
        )

    def begin(self, hit: Hit | None = None) -> None:
        """Takes a slot; a sequence with nothing to read and nothing to say needs none, and ends.

        Args:
            hit: The cached state that it goes on from, ``None`` for the request's base.
        """
        request, base = self._request, self._request.base
        if hit is not None:
            base, self._logits = hit.cached.state, hit.cached.logits
            self._at = self._n_read = hit.n_tokens
        if self._reused is None:
            self._reused = self._at
        if self._at in request.checkpoints:
            self._checkpoints[self._at] = base
        if self.prefix is not None and self.prefills:
            self.snapshots |= self.prefix.positions(self._at)
        self.snapshots = {at for at in self.snapshots if at > self._at}
        if self._at == len(self._unread) and not (self.prefills and request.max_tokens):
            self._deliver(base)
            return
        self._slot = self._slots.allocate(base)
        if request.max_tokens and self._at == request.common:
            self._copies = [(self._at, Snapshot(self._slots, base))]
            self._n_firm = 1
        if self._at == len(self._unread):
            self._replay()

    def preempt(self) -> None:
        """Gives its slots up; `begin` has it read again what it had read, and it goes on there.

        What was said, and who chooses next, stays: nobody sees that anything happened. Its end, if
        it was found, is not looked for again.
        """
        self.leave()
        self._n_firm = self._n_read = 0
        self._logits = self._end_state = None
        if self._phase is _Phase.SETTLE:
            self._read(_Phase.SETTLE, (*self._settled, *self._answer_ids))
            return
        self.snapshots |= self._firm
        self.snapshots |= {at for at in self._request.checkpoints if at not in self._checkpoints}
        self._read(_Phase.PREFILL, self._request.prompt)

    def _replay(self) -> None:
        """Goes on to reading what was said before the slot was lost, if there is any."""
        if self._ids:
            self._read(_Phase.REPLAY, tuple(self._ids))

    def leave(self) -> None:
        """Gives its slots back."""
        self._drop_copies()
        while self._marked:
            self._marked.popitem()[1].drop()
        slot, self._slot = self._slot, None
        if slot is not None:
            self._slots.free(slot)

    def next_ids(self, count: int) -> Sequence[int]:
        """Returns the ids that the model must read next, `wanted` at most."""
        return self._unread[self._at : self._at + count]

    def advance(self, count: int, marked: Mapping[int, Snapshot] | None = None) -> bool:
        """Takes note that so many ids were read.

        Args:
            count: So many.
            marked: The states after so many of them, by `marks`; the one behind them all may be
                missing, and is copied then.

        Returns:
            Whether the next id is to be sampled.
        """
        before, request, samples = self._at, self._request, self.samples_after(count)
        of_prompt = len(request.prompt) if self.prefills else request.common
        self.n_prompt_read += max(min(self._n_read + count, of_prompt) - self._n_read, 0)
        self._at += count
        self._n_read += count
        if self.prefills:
            self._marked = {before + after: copy for after, copy in (marked or {}).items()}
            self._note_prefill()
        if self._at == len(self._unread):
            if self.prefills:
                self._replay()
            elif self._phase is _Phase.SETTLE:
                self._leave_with()
        return samples

    @property
    def given_logits(self) -> torch.Tensor | None:
        """The logits to sample from before anything is read, where the cache had them."""
        return self._logits if self.prefills and self._at == len(self._unread) else None

    def see_logits(self, row: LogitsRow) -> None:
        """Shows the next token's logits, which the cache keeps with the state behind a prompt."""
        fetch, self._end_state = self._end_state, None
        if fetch is not None and self.prefix is not None:
            copied = torch.from_numpy(row.scores.copy())
            self.prefix.keep(len(self._request.prompt), fetch(), copied)

    def sample(self, row: LogitsRow) -> int:
        """Chooses the next id by the logits, and goes on to reading it, or to the end.

        Returns:
            Number of ids that the answer grew by; a constraint may force some behind the chosen.
        """
        before = self.n_sampled
        if self._guide is None:
            choice = Choice((self._sampler.choose(row),))
        else:
            choice = self._guide.choose(row, self._sampler)
            if self._guide.holds:
                self._answer.ignore_stops()
        between, text = not self._decoder.pending, ""
        for place, token in enumerate(choice.ids):
            self.n_sampled += 1
            self.n_forced += place >= choice.chosen
            self._n_thought += self._answer.thinks
            if token in self._request.stop_ids:
                self._end("stop")
                return self.n_sampled - before
            piece = self._tokenizer.decode_bytes((token,))
            if place < choice.chosen:
                self._sampler.saw(token, piece)
            self._ids.append(token)
            new = self._decoder.push(piece)
            text += new
            delta = self._answer.push(new)
            if self._logprobs is not None:
                seen = row if place < choice.chosen else None
                self._logprobs.note(token, piece, new, seen, partial=bool(self._decoder.pending))
            self._emit(delta)
            ended = choice.ended and place == len(choice.ids) - 1
            if self._answer.stopped or ended or self.n_sampled == self._request.max_tokens:
                self._end("stop" if self._answer.stopped or ended else "length")
                return self.n_sampled - before
        if not choice.ids:
            self._end("stop")
            return 0
        self._keep_copy(opens=between and len(self._answer.held) <= len(text))
        self._read(_Phase.DECODE, choice.ids)
        return self.n_sampled - before

    def _note_prefill(self) -> None:
        """Copies the state where a copy is wanted, for whoever wants it."""
        request, at = self._request, self._at
        end = len(request.prompt)
        if request.on_progress is not None and at > self._progress:
            self._progress = at
            request.on_progress(at, end)
        copy = None  # of the state here
        for place in sorted({*self._marked, *({at} & self.snapshots)}):
            found = self._snapshot_prompt(place, self._marked.get(place))
            self._marked.pop(place, None)
            copy = found if place == at else None
        passed = [place for place in self.snapshots if place <= at]
        if passed:
            raise RuntimeError(f"The state behind {min(passed)} ids was wanted, and is past.")
        if at == end and not request.max_tokens:
            self._leave_with(None if copy is None else copy.state())

    def _snapshot_prompt(self, at: int, copy: Snapshot | None) -> Snapshot | None:
        """Copies the state at a position of the prompt, and hands the copy to who wants it."""
        request, prefix = self._request, self.prefix
        self.snapshots.discard(at)
        asked = at in request.checkpoints
        cached = prefix is not None and prefix.wants(at)
        firm = request.max_tokens > 0 and at in (request.common, len(request.prompt))
        ends = cached and request.max_tokens > 0 and at == len(request.prompt) and not self._ids
        if ends and not asked and copy is None:
            self._end_state = self._slots.begin_state(self.slot)
        if self._end_state is not None:
            copy = self._slots.snapshot(self.slot) if firm else None
        elif not (asked or cached):
            # Another request may have kept that state meanwhile: a copy would be nobody's.
            if copy is not None and not firm:
                copy.drop()
                return None
            if firm and copy is None:
                copy = self._slots.snapshot(self.slot)
        else:
            state = self._slots.state(self.slot) if copy is None else copy.state()
            copy = Snapshot(self._slots, state)
            if asked:
                self._checkpoints[at] = state
            if ends:
                self._end_state = lambda: state
            elif prefix is not None and cached:
                prefix.keep(at, state)
        if firm and copy is not None:
            self._copies.append((at, copy))
            self._n_firm += 1
        return copy

    def _keep_copy(self, *, opens: bool) -> None:
        """Keeps a copy of the state before an id whose text is held back.

        Args:
            opens: Whether all that is held back came with the last ids, which are not read yet.
        """
        if not self._lasts:
            return
        if not self._answer.held and not self._decoder.pending:
            self._drop_copies(self._n_firm)  # the answer ends later now
        elif opens and self._n_read - self._copies[-1][0] >= (
            _RENEWED if len(self._copies) > self._n_firm else 1
        ):
            self._drop_copies(self._n_firm)
            self._copies.append((self._n_read, self._slots.snapshot(self.slot)))

    def _drop_copies(self, start: int = 0) -> None:
        for _, copy in self._copies[start:]:
            copy.drop()
        del self._copies[start:]

    def _end(self, reason: FinishReason) -> None:
        """Turns to the state that stands for the settled ids and exactly the text.

        A character that is incomplete at the end is left out of the text.
        """
        self._emit(self._answer.flush(cut=reason == "length"))
        self._finish_reason = reason
        answer = self._answer_ids = tuple(self._canonical())
        check_ids(answer, self._vocab_size, "what an answer's text stands for")
        wanted = (*self._settled, *answer)
        same = self._request.common
        agreed = same + common((*self._request.prompt[same:], *self._ids), wanted[same:])
        self.reread = agreed < len(wanted) and self._settled == self._request.prompt and self._lasts
        self.reread = self.reread and not self._answer.thought
        copy = None
        if self._n_read > agreed:
            self._n_read, copy = [copy for copy in self._copies if copy[0] <= agreed][-1]
        # First of all, since there may be no memory for what follows.
        self._read(_Phase.SETTLE, wanted[self._n_read :])
        if copy is not None:
            copy.restore(self.slot)
        self._drop_copies()
        if not self._unread:
            self._leave_with()

    def _canonical(self) -> Sequence[int]:
        """Returns the ids that stand for what was said."""
        request, answer = self._request, self._answer
        text = request.continued + answer.text
        if request.canonical_thought is not None:
            return request.canonical_thought(answer.thought or "", text)
        return (request.canonical or self._tokenizer.encode)(text)

    def _leave_with(self, state: RWKVState | None = None) -> None:
        """Ends with a state, by default the slot's: the caller gets it once it is there."""
        if state is None:
            self._slots.hand_over(self.slot, self._deliver, self.handle)
        else:
            self._deliver(state)
        self._leaves = True  # not before: where there is no memory for a copy, it is read again

    def _deliver(self, state: RWKVState) -> None:
        request = self._request
        if self.prefix is not None:
            self.prefix.keep_answer(self._answer_ids, state)
        self.handle.put(
            Done(
                text=self._answer.text,
                finish_reason=self._finish_reason,
                state=state,
                prompt_tokens=len(request.prompt),
                answer_tokens=self.n_sampled,
                answer_ids=self._answer_ids,
                checkpoints=tuple(self._checkpoints[at] for at in request.checkpoints),
                reused=self._reused or 0,
                reread=self.reread,
                thought=self._answer.thought,
                thought_tokens=0 if self._answer.thought is None else self._n_thought,
                forced_tokens=self.n_forced,
                logprobs=None if self._logprobs is None else self._logprobs.handed_on,
            )
        )

    def _read(self, phase: _Phase, ids: Sequence[int]) -> None:
        self._phase = phase
        self._unread = ids
        self._at = 0

    def _emit(self, delta: Delta | None) -> None:
        if delta is None:
            return
        self.handle.put(delta if self._logprobs is None else self._logprobs.hand_on(delta))


def _prefix(request: Request) -> Prefix | None:
    """Returns a request's dealings with the prefix cache, ``None`` where it can save nothing."""
    if request.caching is None or not request.prompt:
        return None
    found = Prefix(
        request.caching,
        request.base,
        request.prompt,
        request.prompt if request.settled is None else request.settled,
        reach=request.common,
        limit=min(request.checkpoints, default=len(request.prompt)),
        answers=request.max_tokens > 0,
    )
    return found if found.is_useful else None
