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
from itertools import takewhile

import torch

from langchain_rwkv_state.engine.request import Delta, Done, FinishReason, Request, check_ids
from langchain_rwkv_state.engine.sampler import Look, Sampler
from langchain_rwkv_state.engine.seats import Seat, Seats
from langchain_rwkv_state.engine.stop import StopMatcher
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

    Attributes:
        ticket: Takes the events.
        turn: The step in which it read last, or came.
        submitted: When it came, on the monotonic clock.
        n_sampled: Number of ids sampled.
        reread: Whether the answer is read again in its canonical ids.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, ticket: Ticket, vocab_size: int
    ) -> None:
        self.ticket = ticket
        self.turn = 0
        self.submitted = time.monotonic()
        self.n_sampled = 0
        self.reread = False
        self._request = request
        self._seat: Seat | None = None
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._sampler = Sampler(request.sampling)
        self._decoder = StreamDecoder()
        self._matcher = StopMatcher(request.stop, strip=request.strip)
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._kept: dict[int, RWKVState] = {}
        # Copies of the state, with the number of sampled ids that each has read: after the prompt,
        # and before the first id whose text is held back, since the answer may end there.
        self._copies: list[tuple[int, RWKVState]] = []
        self._n_read = 0  # sampled ids that the seat's own state has read
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
    def n_prompt_read(self) -> int:
        """Number of the prompt's ids read."""
        return self._at if self._phase is _Phase.PREFILL else len(self._request.prompt)

    @property
    def prefills(self) -> bool:
        """Whether it reads its prompt."""
        return self._phase is _Phase.PREFILL

    @property
    def decodes(self) -> bool:
        """Whether it reads the id that was sampled last."""
        return self._phase is _Phase.DECODE

    @property
    def wanted(self) -> int:
        """Number of ids that it would read in one go, at least one."""
        end = len(self._unread)
        if self._phase is _Phase.PREFILL:
            places = (*self._request.checkpoints, *self._request.marks)
            end = min([end, *(at for at in places if at > self._at)])
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
        if self._request.prompt:
            self._seat = seats.take(base)
        elif self._request.max_tokens:
            self._seat = seats.take(base)
            self._copies = [(0, base)]
        else:
            self._deliver(base)

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
        if self._phase is _Phase.PREFILL:
            self._mark_prefill()
        if self._at < len(self._unread):
            return False
        if self._phase is _Phase.SETTLE:
            self._deliver(self.seat.snapshot())
            return False
        if self._phase is _Phase.DECODE:
            self._n_read += 1
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
        request.on_mark(end, self._copies[0][1], copied)

    def sample(self, look: Look) -> None:
        """Chooses the next id by the logits, and goes on to reading it, or to the end."""
        token = self._sampler.choose(look)
        self.n_sampled += 1
        if token in self._request.stop_ids:
            self._end("stop")
            return
        piece = self._tokenizer.decode_bytes((token,))
        self._sampler.saw(token, piece)
        self._ids.append(token)
        between = not self._decoder.pending
        text = self._decoder.push(piece)
        self._emit(self._matcher.push(text))
        if self._matcher.stopped:
            self._end("stop")
        elif self.n_sampled == self._request.max_tokens:
            self._end("length")
        else:
            self._keep_copy(opens=between and len(self._matcher.held) <= len(text))
            self._read(_Phase.DECODE, (token,))

    def _mark_prefill(self) -> None:
        request, at = self._request, self._at
        end = len(request.prompt)
        asked = at in request.checkpoints
        marked = at in request.marks
        state = self.seat.snapshot() if asked or marked or at == end else None
        if state is not None and asked:
            self._kept[at] = state
        if request.on_progress is not None:
            request.on_progress(at, end)
        answers = at == end and request.max_tokens > 0
        if state is not None and marked and request.on_mark is not None and not answers:
            request.on_mark(at, state, None)  # behind the prompt it comes with logits
        if state is not None and answers:
            self._copies = [(0, state)]
        elif state is not None and at == end:
            self._deliver(state)

    def _keep_copy(self, *, opens: bool) -> None:
        """Keeps a copy of the state before an id whose text is held back.

        Args:
            opens: Whether all that is held back came with the last id, which is not read yet.
        """
        if not self._matcher.held and not self._decoder.pending:
            del self._copies[1:]  # the answer ends later now
        elif opens and self._n_read - self._copies[-1][0] >= (
            _RENEWED if len(self._copies) > 1 else 1
        ):
            self._copies[1:] = [(self._n_read, self.seat.snapshot())]

    def _end(self, reason: FinishReason) -> None:
        """Turns to the state that stands for exactly the text.

        A character that is incomplete at the end is left out of the text.
        """
        self._emit(self._matcher.flush())
        self._finish_reason = reason
        canonical = self._request.canonical or self._tokenizer.encode
        answer = self._answer_ids = tuple(canonical("".join(self._texts)))
        check_ids(answer, self._vocab_size, "what an answer's text stands for")
        pairs = zip(self._ids, answer, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.reread = common < len(answer)
        if self._n_read <= common:
            read, state = self._n_read, None
        else:
            read, state = [copy for copy in self._copies if copy[0] <= common][-1]
        self._copies = []
        if read == len(answer):
            self._deliver(state or self.seat.snapshot())
            return
        if state is not None:
            self.seat.restore(state)
        self._read(_Phase.SETTLE, answer[read:])

    def _deliver(self, state: RWKVState) -> None:
        request = self._request
        self.ticket.put(
            Done(
                text="".join(self._texts),
                finish_reason=self._finish_reason,
                state=state,
                prompt_tokens=len(request.prompt),
                answer_tokens=self.n_sampled,
                answer_ids=self._answer_ids,
                checkpoints=tuple(self._kept[at] for at in request.checkpoints),
                reread=self.reread,
            )
        )

    def _read(self, phase: _Phase, ids: Sequence[int]) -> None:
        self._phase = phase
        self._unread = ids
        self._at = 0

    def _emit(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self.ticket.put(Delta(text))
