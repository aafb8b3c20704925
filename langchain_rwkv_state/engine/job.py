"""One request's life on the worker: what the model must read next, and what came of it.

A job never calls the model. It says which ids to read (`next_tokens`) and from which state, and is
handed what the model gave (`advance`); prefill, decoding and re-reading differ in nothing else, so
a worker may interleave jobs as it likes. The easy mistake is to keep the state at hand as the
answer's: it has read what was sampled, which may be more than the text that the caller saw, or
other ids than that text has.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from itertools import takewhile

import torch

from langchain_rwkv_state.engine.request import Delta, Done, FinishReason, Request
from langchain_rwkv_state.engine.sampler import Sampler
from langchain_rwkv_state.engine.stop import StopMatcher
from langchain_rwkv_state.engine.ticket import Ticket
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import StreamDecoder, Tokenizer

_TRAIL = 16  # states kept behind a held-back text; stop texts are rarely that many tokens long


class _Phase(Enum):
    PREFILL = auto()
    DECODE = auto()
    SETTLE = auto()


class Job:
    """A request on its way.

    Args:
        request: What is asked for.
        tokenizer: Turns sampled ids into text.
        prefill_chunk: At most so many ids are read in one step.

    Attributes:
        ticket: Takes the events.
        state: The state to read `next_tokens` from.
        n_sampled: Number of ids sampled.
        reread: Whether the answer is read again in its canonical ids.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, prefill_chunk: int) -> None:
        self.ticket = Ticket()
        self.state = request.base
        self.n_sampled = 0
        self.reread = False
        self._request = request
        self._tokenizer = tokenizer
        self._chunk = prefill_chunk
        self._sampler = Sampler(request.sampling)
        self._decoder = StreamDecoder()
        self._matcher = StopMatcher(request.stop, strip=request.strip)
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._kept: dict[int, RWKVState] = {}
        # States after the prompt and some of the sampled ids, with their number; a final text
        # covers at least the first `_settled` ids, so older states are let go.
        self._trail: list[tuple[int, RWKVState]] = []
        self._settled = 0
        self._finish_reason: FinishReason = "length"
        self._answer_ids: tuple[int, ...] = ()
        self._read(_Phase.PREFILL, request.prompt)
        self._keep()

    @property
    def n_prompt_read(self) -> int:
        """Number of the prompt's ids read."""
        return self._at if self._phase is _Phase.PREFILL else len(self._request.prompt)

    def begin(self) -> None:
        """Ends a job that has nothing to read; others begin with `next_tokens`."""
        if not self._request.prompt:
            self._deliver()

    def next_tokens(self) -> Sequence[int]:
        """Returns the ids that the model must read from `state` next, at least one."""
        end = min(self._at + self._chunk, len(self._unread))
        if self._phase is _Phase.PREFILL:
            end = min([end, *(at for at in self._request.checkpoints if at > self._at)])
        self._next = self._unread[self._at : end]
        return self._next

    def advance(self, logits: torch.Tensor, state: RWKVState) -> None:
        """Takes what the model gave for `next_tokens`, and goes on to the next ids or the end."""
        self.state = state
        self._at += len(self._next)
        if self._phase is _Phase.PREFILL:
            self._keep()
            if self._request.on_progress is not None:
                self._request.on_progress(self._at, len(self._unread))
        if self._at < len(self._unread):
            return
        if self._phase is _Phase.SETTLE or self._request.max_tokens == 0:
            self._deliver()
        else:
            self._remember()
            self._decode(logits)

    def _decode(self, logits: torch.Tensor) -> None:
        token = self._sampler.pick(logits)
        self.n_sampled += 1
        if token in self._request.stop_ids:
            self._end("stop")
            return
        piece = self._tokenizer.decode_bytes((token,))
        self._sampler.saw(token, piece)
        self._ids.append(token)
        self._emit(self._matcher.push(self._decoder.push(piece)))
        if self._matcher.stopped:
            self._end("stop")
        elif self.n_sampled == self._request.max_tokens:
            self._end("length")
        else:
            if not self._matcher.held and not self._decoder.pending:
                self._settled = len(self._ids)
            self._read(_Phase.DECODE, (token,))

    def _end(self, reason: FinishReason) -> None:
        """Turns to the state that stands for exactly the text.

        A character that is incomplete at the end is left out of the text.
        """
        self._emit(self._matcher.flush())
        self._finish_reason = reason
        canonical = self._request.canonical or self._tokenizer.encode
        answer = self._answer_ids = tuple(canonical("".join(self._texts)))
        pairs = zip(self._ids, answer, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.reread = common < len(answer)
        read, self.state = [entry for entry in self._trail if entry[0] <= common][-1]
        self._read(_Phase.SETTLE, answer[read:])
        if not self._unread:
            self._deliver()

    def _deliver(self) -> None:
        request = self._request
        self.ticket.put(
            Done(
                text="".join(self._texts),
                finish_reason=self._finish_reason,
                state=self.state,
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

    def _keep(self) -> None:
        if self._at in self._request.checkpoints:
            self._kept[self._at] = self.state

    def _remember(self) -> None:
        trail = self._trail
        trail.append((len(self._ids), self.state))
        while len(trail) > 2 and (trail[2][0] <= self._settled or len(trail) > _TRAIL):
            del trail[1]  # never the first: an answer may have to be read again from the prompt

    def _emit(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self.ticket.put(Delta(text))
