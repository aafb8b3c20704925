"""Measures what a decode step costs the host, with a model that costs nothing.

A stand-in for a model of World's vocabulary hands back ready logits, as behind a card; some
requests decode at once, each taken by a task of one event loop, with the settings that `ChatRWKV`
has of its own. Measured is the processor's time of a step, of the worker and of the whole process,
where the host chooses by the logits, as it does on a CPU, and where the slots choose, as on a card:
only ids come back, and the next step is launched before they are handled.

    python -m benchmarks.host_cost [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import asyncio
import itertools
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import common
from langchain_rwkv_state.engine import Engine, Request, RequestHandle, Sampling
from langchain_rwkv_state.runtime.base import Budgets
from langchain_rwkv_state.runtime.sampling import Floats, Found, SamplerState
from langchain_rwkv_state.runtime.slots import ChoosingSlots, Launched, Read, Reads
from langchain_rwkv_state.state import Fingerprint, RWKVState, StateLayout, zero_state
from langchain_rwkv_state.tokenizer import WorldTokenizer

TOKENIZER = WorldTokenizer()
VOCAB_SIZE = 65_536
GOALS_MS = {64: 5.0, 320: 20.0}  # of a step whose ids are known
_WORD = re.compile(rb" [a-z]{3,}")
_WORDS = [at for at in range(1, 65_530) if _WORD.fullmatch(TOKENIZER.decode_bytes((at,)))]


class Model:
    """A runtime whose slots hold nothing and whose passes take no time.

    Args:
        logits: What each pass hands back the first rows of.

    Attributes:
        times: At each pass: number of rows, the worker's time and the process's, in seconds.
        go: No pass begins before it is set.
        chooses: Whether its slots choose.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self.layout = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64)
        self.fingerprint = str(Fingerprint("none", "fp32"))
        self.vocab_size = VOCAB_SIZE
        self.budgets = Budgets(grows=False)  # as on a card, so that all decode at once
        self.times: list[tuple[int, float, float]] = []
        self.go = threading.Event()
        self.chooses = False
        self._logits = logits

    def zero_state(self) -> RWKVState:
        """Returns the only state that there is."""
        return zero_state(self.layout, self.fingerprint)

    def slots(self, count: int) -> Slots:
        """Returns slots."""
        slots = CardSlots(self, count) if self.chooses else Slots(self, count)
        # Else the engine would take logits from both, and this would time the same thing twice.
        assert isinstance(slots, ChoosingSlots) == self.chooses
        return slots

    def read(self, count: int) -> torch.Tensor:
        """Returns logits, and notes the time."""
        self.go.wait()
        self.times.append((count, time.thread_time(), time.process_time()))
        return self._logits[:count]

    def forward(self, tokens: Sequence[int], state: RWKVState) -> tuple[torch.Tensor, RWKVState]:
        """Is not called where there are slots."""
        raise NotImplementedError

    def forward_batch(
        self, tokens: Sequence[Sequence[int]], states: Sequence[RWKVState]
    ) -> tuple[torch.Tensor, list[RWKVState]]:
        """Is not called where there are slots."""
        raise NotImplementedError

    def close(self) -> None:
        """Has nothing to close."""


class Slots:
    """Slots of a `Model`."""

    def __init__(self, model: Model, count: int) -> None:
        self._model = model
        self.count = count

    def put(self, slot: int, state: RWKVState) -> None:
        """Forgets a state."""

    def get(self, slot: int) -> RWKVState:  # noqa: ARG002
        """Returns the only state that there is."""
        return self._model.zero_state()

    def copy(self, source: int, target: int) -> None:
        """Copies nothing."""

    def read(self, reads: Reads) -> torch.Tensor:
        """Reads nothing, and returns logits."""
        return self._model.read(len(reads))

    def clear(self, slot: int) -> None:
        """Clears nothing."""


class CardSlots(Slots):
    """Slots that choose one word after the other."""

    can_mark = True

    def __init__(self, model: Model, count: int) -> None:
        super().__init__(model, count)
        self.served = count
        self._words = itertools.cycle(_WORDS)

    def count_by(self, tokenizer: str, increments: Callable[[], Sequence[float]]) -> None:
        """Counts nothing."""

    def load_sampler(self, slot: int, state: SamplerState) -> None:
        """Chooses words, whatever it is told."""

    def launch(self, reads: Sequence[Read]) -> Launched:
        """Chooses the next words."""
        self.read([(read.slot, ()) for read in reads])
        return _Launched(
            [Found(word, True, word) for word in itertools.islice(self._words, len(reads))]
        )

    def confirm(self, slot: int, token: int) -> None:
        """Takes on nothing."""

    def abandon(self, slot: int) -> None:
        """Drops nothing."""


class _Launched:
    def __init__(self, found: list[Found]) -> None:
        self._found = found

    def found(self) -> list[Found]:
        return self._found

    def logits(self, number: int) -> Floats:
        raise NotImplementedError


def likely_words(rows: int) -> torch.Tensor:
    """Returns logits as of a trained model: a few words of each row far above the rest."""
    generator = torch.Generator().manual_seed(0)
    ranks = -1.6 * torch.log(torch.arange(1, VOCAB_SIZE + 1).float())
    logits = torch.empty(rows, VOCAB_SIZE)
    for row in logits:
        row[torch.randperm(VOCAB_SIZE, generator=generator)] = ranks
    others = torch.ones(VOCAB_SIZE, dtype=torch.bool)
    others[_WORDS] = False
    logits[:, others] -= 12
    return logits


def cost_ms(model: Model, count: int, steps: int, *, chooses: bool) -> tuple[float, float]:
    """Returns the milliseconds of a step of so many rows: the worker's median, and in all.

    Who takes the tokens may lag behind a pass that costs nothing. So what all of it costs is taken
    from the first whole step to the last taken token, and divided by the steps.
    """
    model.chooses = chooses
    engine = Engine(model, TOKENIZER, slots=count, prefill_chunk=1024)
    model.times.clear()
    model.go.clear()
    zero = model.zero_state()

    def ask(seed: int) -> RequestHandle:
        request = Request(
            *(zero, [5]),
            max_tokens=steps,
            sampling=Sampling(temperature=1, top_p=0.3, seed=seed),
            stop=("\n\nUser:",),
            stop_ids=TOKENIZER.eos_ids,
            roles=("User", "Assistant"),
        )
        return engine.submit(request)

    async def take(handle: RequestHandle) -> None:
        async for _ in handle:
            pass

    async def all_of_them() -> None:
        handles = [ask(seed) for seed in range(count)]
        model.go.set()
        await asyncio.gather(*map(take, handles))

    asyncio.run(all_of_them())
    end = time.process_time()
    engine.close()
    whole = [(worker, in_all) for rows, worker, in_all in model.times if rows == count]
    steps_of_worker = [after - before for (before, _), (after, _) in itertools.pairwise(whole)]
    return 1e3 * statistics.median(steps_of_worker), 1e3 * (end - whole[0][1]) / len(whole)


def main() -> int:
    arguments = common.parser("What a decode step costs the host.").parse_args()
    torch.set_num_threads(1)
    sizes = (1, 8) if arguments.quick else (1, 64, 320)
    rounds = 1 if arguments.quick else 3
    report = common.Report("host_cost", {"sizes": sizes, "rounds": rounds, "top_p": 0.3})
    model = Model(likely_words(sizes[-1]))
    rows = []
    for count in sizes:
        steps = max(12, min(200, 2000 // count)) if not arguments.quick else 12
        by: dict[str, list[tuple[float, float]]] = {"logits": [], "ids": []}
        for _ in range(rounds):
            by["logits"].append(cost_ms(model, count, min(steps, 20), chooses=False))
            by["ids"].append(cost_ms(model, count, steps, chooses=True))
        for name, costs in by.items():
            worker, all_ = (min(each[part] for each in costs) for part in (0, 1))
            report.results[f"{name}, {count}"] = {"worker_ms": worker, "all_ms": all_}
            rows.append([name, str(count), f"{worker:.2f}", f"{all_:.2f}"])
            if name == "ids" and count in GOALS_MS:
                what = f"a step of {count} whose ids are known"
                report.add(common.Check(what, all_, GOALS_MS[count], "at most", "ms", rounds))
    head = ["the pass gives", "requests", "worker, ms a step", "in all, ms a step"]
    common.print_table("What a step costs the host", head, rows)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
