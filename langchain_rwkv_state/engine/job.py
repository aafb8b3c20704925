"""One request's life on the worker: what the model must read next, and what came of it.

A job never calls the model. It says how many ids it would read (`wanted`), is told how many were
read (`advance`), and is shown the logits when it asks for them (`sample`); prefill, decoding and
re-reading differ in nothing else, so that a worker may interleave jobs as it likes. The easy
mistake is to keep the state at hand as the answer's: it has read what was sampled, which may be
more than the text that the caller saw, or other ids than that text has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import Enum, auto

import torch

from langchain_rwkv_state.engine.answer import Answer
from langchain_rwkv_state.engine.constraints import Choice, Guide
from langchain_rwkv_state.engine.request import (
    Delta,
    Done,
    FinishReason,
    Request,
    check_ids,
    common,
)
from langchain_rwkv_state.engine.sampler import Look, Sampler
from langchain_rwkv_state.engine.seats import Seat, Seats
from langchain_rwkv_state.engine.ticket import Ticket
from langchain_rwkv_state.errors import DeadlineExceeded
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import StreamDecoder, Tokenizer

_RENEWED = 16  # ids after which the copy behind a held-back text is renewed; a copy costs megabytes


class _Phase(Enum):
    PREFILL = auto()
    DECODE = auto()
    SETTLE = auto()


class Job:
    """A request on its way.

    Args:
        request: What is asked for.
        tokenizer: Turns sampled ids into text.
        ticket: Takes the events.
        vocab_size: Number of ids that the model knows.
        guide: Chooses the ids of an answer that is held to a constraint.

    Attributes:
        ticket: Takes the events.
        turn: The step in which it read last, or came.
        submitted: When it came, on the monotonic clock.
        n_sampled: Number of ids of the answer, the forced ones too.
        n_forced: How many of them were forced.
        reread: Whether the answer is read again in its canonical ids.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        ticket: Ticket,
        vocab_size: int,
        guide: Guide | None = None,
    ) -> None:
        self.ticket = ticket
        self.turn = 0
        self.submitted = time.monotonic()
        self.n_sampled = 0
        self.n_forced = 0
        self.reread = False
        self._request = request
        self._seat: Seat | None = None
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._sampler = Sampler(request.sampling)
        self._guide = guide
        self._decoder = StreamDecoder()
        self._answer = Answer(request)
        self._settled = request.prompt if request.settled is None else request.settled
        self._ids: list[int] = []
        self._n_thought = 0
        self._kept: dict[int, RWKVState] = {}
        # Copies of the state, with the number of ids (the prompt's and sampled ones) that each has
        # read: where the settled ids part from the prompt, after the prompt, and, last, before the
        # first id whose text is held back, since the answer may end there.
        self._copies: list[tuple[int, RWKVState]] = []
        self._n_firm = 0  # copies that stay whatever is held back
        self._n_read = 0  # ids, the prompt's and sampled ones, that the seat's own state has read
        # Whether what is read behind the prompt can stand in the state behind the answer.
        self._lasts = request.common == min(len(request.prompt), len(self._settled)) and not (
            request.thought and request.thought.asked and not request.thought.keep
        )
        self._finish_reason: FinishReason = "length"
        self._answer_ids: tuple[int, ...] = ()
        self._read(_Phase.PREFILL, request.prompt)

    @property
    def seat(self) -> Seat:
        """The place of its state, from `begin` on where there is something to read."""
        if self._seat is None:
            raise RuntimeError("The request has no seat.")
        return self._seat

    @property
    def sampler(self) -> Sampler:
        """Who chooses the next id, by the next logits and nothing else."""
        return self._sampler

    @property
    def chooses_freely(self) -> bool:
        """Whether the sampler chooses among all ids, as far as is known now."""
        return self._guide is None or not self._guide.holds

    @property
    def n_prompt_read(self) -> int:
        """Number of the prompt's ids read."""
        return self._at if self._phase is _Phase.PREFILL else len(self._request.prompt)

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
        if self._phase is _Phase.PREFILL:
            end = min([end, *(at for at in self._places() if at > self._at)])
        return end - self._at

    def expire(self, now: float) -> None:
        """Ends the request if its deadline has passed."""
        deadline = self._request.deadline
        if deadline is None or now - self.submitted < deadline or self.ticket.over:
            return
        stage = "while it waited" if self._seat is None else f"after {self.n_sampled} tokens"
        self.ticket.fail(
            DeadlineExceeded(
                f"The request's deadline of {deadline} s passed {stage}: ask again when there is "
                "less to do, or give it more time."
            )
        )

    def begin(self, seats: Seats) -> None:
        """Takes a seat; a job with nothing to read and nothing to say needs none, and ends."""
        base = self._request.base
        if 0 in self._request.checkpoints:
            self._kept[0] = base
        if self._request.prompt or self._request.max_tokens:
            self._seat = seats.take(base)
        else:
            self._deliver(base)
            return
        if self._request.max_tokens and not self._request.common:
            self._copies = [(0, base)]
            self._n_firm = 1

    def leave(self, seats: Seats) -> None:
        """Gives the seat back."""
        seat, self._seat = self._seat, None
        if seat is not None:
            seats.give_back(seat)

    def next_ids(self, count: int) -> Sequence[int]:
        """Returns the ids that the model must read next, `wanted` at most."""
        return self._unread[self._at : self._at + count]

    def advance(self, count: int) -> bool:
        """Takes note that so many ids were read; returns whether the next id is to be sampled."""
        self._at += count
        self._n_read += count
        if self._phase is _Phase.PREFILL:
            self._mark_prefill()
        if self._at < len(self._unread):
            return False
        if self._phase is _Phase.SETTLE:
            self._deliver(self.seat.snapshot())
            return False
        return self._request.max_tokens > 0

    @property
    def given_logits(self) -> torch.Tensor | None:
        """The logits to sample from before anything is read, where the request brings them."""
        request = self._request
        return None if request.prompt or not request.max_tokens else request.logits

    def see_logits(self, logits: torch.Tensor) -> None:
        """Shows the next token's logits, which the caller may want after the prompt's last id."""
        request = self._request
        end = len(request.prompt)
        if self.n_sampled or request.on_mark is None or end not in request.marks:
            return
        copied = torch.from_numpy(logits.detach().numpy().copy())
        request.on_mark(end, self._copies[-1][1], copied)

    def sample(self, look: Look) -> int:
        """Chooses the next id by the logits, and goes on to reading it, or to the end.

        Returns:
            Number of ids that the answer grew by; a constraint may force some behind the chosen.
        """
        before = self.n_sampled
        if self._guide is None:
            choice = Choice((self._sampler.choose(look),))
        else:
            choice = self._guide.choose(look, self._sampler)
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
            self._emit(self._answer.push(new))
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

    def _places(self) -> tuple[int, ...]:
        """Returns the positions in the prompt that are read up to, and not past in one go."""
        request = self._request
        parts = (request.common,) if request.max_tokens else ()
        return (*request.checkpoints, *request.marks, *parts)

    def _mark_prefill(self) -> None:
        request, at = self._request, self._at
        end = len(request.prompt)
        asked = at in request.checkpoints
        marked = at in request.marks
        answers = request.max_tokens > 0
        firm = answers and (at == request.common or (at == end and self._lasts))
        wanted = asked or marked or firm or (at == end and not answers)
        state = self.seat.snapshot() if wanted else None
        if state is not None and asked:
            self._kept[at] = state
        if request.on_progress is not None:
            request.on_progress(at, end)
        if state is None:
            return
        if marked and request.on_mark is not None and not (answers and at == end):
            request.on_mark(at, state, None)  # behind the prompt it comes with logits
        if firm:
            self._copies.append((at, state))
            self._n_firm += 1
        elif at == end and not answers:
            self._deliver(state)

    def _keep_copy(self, *, opens: bool) -> None:
        """Keeps a copy of the state before an id whose text is held back.

        Args:
            opens: Whether all that is held back came with the last ids, which are not read yet.
        """
        if not self._lasts:
            return
        if not self._answer.held and not self._decoder.pending:
            del self._copies[self._n_firm :]  # the answer ends later now
        elif opens and self._n_read - self._copies[-1][0] >= (
            _RENEWED if len(self._copies) > self._n_firm else 1
        ):
            self._copies[self._n_firm :] = [(self._n_read, self.seat.snapshot())]

    def _end(self, reason: FinishReason) -> None:
        """Turns to the state that stands for the settled ids and exactly the text.

        A character that is incomplete at the end is left out of the text.
        """
        self._emit(self._answer.flush(cut=reason == "length"))
        self._finish_reason = reason
        answer = self._answer_ids = tuple(self._canonical())
        check_ids(answer, self._vocab_size, "what an answer's text stands for")
        wanted = (*self._settled, *answer)
        agreed = common((*self._request.prompt, *self._ids), wanted)
        self.reread = agreed < len(wanted) and self._settled == self._request.prompt and self._lasts
        self.reread = self.reread and not self._answer.thought
        if self._n_read <= agreed:
            read, state = self._n_read, None
        else:
            read, state = [copy for copy in self._copies if copy[0] <= agreed][-1]
        self._copies = []
        if read == len(wanted):
            self._deliver(state or self.seat.snapshot())
            return
        if state is not None:
            self.seat.restore(state)
        self._read(_Phase.SETTLE, wanted[read:])

    def _canonical(self) -> Sequence[int]:
        """Returns the ids that stand for what was said."""
        request, answer = self._request, self._answer
        text = request.continued + answer.text
        if request.canonical_thought is not None:
            return request.canonical_thought(answer.thought or "", text)
        return (request.canonical or self._tokenizer.encode)(text)

    def _deliver(self, state: RWKVState) -> None:
        request = self._request
        self.ticket.put(
            Done(
                text=self._answer.text,
                finish_reason=self._finish_reason,
                state=state,
                prompt_tokens=len(request.prompt),
                answer_tokens=self.n_sampled,
                answer_ids=self._answer_ids,
                checkpoints=tuple(self._kept[at] for at in request.checkpoints),
                reread=self.reread,
                thought=self._answer.thought,
                thought_tokens=0 if self._answer.thought is None else self._n_thought,
                forced_tokens=self.n_forced,
            )
        )

    def _read(self, phase: _Phase, ids: Sequence[int]) -> None:
        self._phase = phase
        self._unread = ids
        self._at = 0

    def _emit(self, delta: Delta | None) -> None:
        if delta is not None:
            self.ticket.put(delta)
