"""`measure`: tells a model facts, says other things, asks, and counts what came back.

Five questions to a memory: how far back it reaches, how many facts it holds, and what a codec, a
blend or a decay leaves of them; beside the state, where it applies, the transcript read again. It
changes no store but its own. The easy mistake is to leave the controls out: a zero state and
somebody else's must know nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from random import Random
from typing import Any, Literal, get_args

from langchain_rwkv_state.chat_models import ChatRWKV
from langchain_rwkv_state.state import CODECS, CodecName
from langchain_rwkv_state.store import MemoryStateStore
from langchain_rwkv_state.toolbox.recall import cases
from langchain_rwkv_state.toolbox.recall.cases import Case, Outcome
from langchain_rwkv_state.toolbox.recall.result import Point, Recall, Section, Series
from langchain_rwkv_state.toolbox.recall.talk import Talks

SectionName = Literal["distance", "facts", "codecs", "blends", "decays"]
SECTIONS: tuple[SectionName, ...] = get_args(SectionName)
MAX_TOKENS = 64

_AT_ONCE = 64
_STATES_BYTES = 1 << 30  # of conversations under way, at four states each: sessions and forks

Progress = Callable[[int, int], None]


def measure(
    model: str = "demo",
    *,
    n: int = 40,
    strategy: str = "auto",
    only: Sequence[SectionName] = SECTIONS,
    distances: Sequence[int] = cases.DISTANCES,
    codec_distance: int = cases.CODEC_DISTANCE,
    tokenizer: Any = None,
    on_progress: Progress | None = None,
) -> Recall:
    """Measures what a model recalls.

    Every case draws its own facts and turns from its number, so that two models, or two runs, are
    asked the same. Answers are greedy. What comes back counts where it holds the value letter by
    letter.

    Args:
        model: As `ChatRWKV` takes it.
        n: Cases of each section, at least 1; each asks several questions.
        strategy: How the model runs.
        only: Which sections to measure.
        distances: Other turns between telling and asking, for the section ``distance``.
        codec_distance: Other turns between telling and asking, for the section ``codecs``; a store
            takes its codec's loss at each.
        tokenizer: As `ChatRWKV` takes it.
        on_progress: Called with (cases done, cases in all).

    Returns:
        The counts, section by section.

    Raises:
        ValueError: `n`, a distance or a section is none.
        ModelLoadError: The model cannot be loaded.

    Example:
        >>> found = measure("demo", n=2, only=["distance"], distances=[0])
        >>> [(series.name, series.points[0].n) for series in found.section("distance").series]
        [('state', 2), ('transcript read again', 2)]
    """
    if not only or any(name not in SECTIONS for name in only):
        raise ValueError(f"Sections are {', '.join(SECTIONS)}, got {list(only)}.")
    if n < 1 or not distances or min(*distances, codec_distance) < 0:
        raise ValueError(
            f"n must be 1 or more and distances 0 or more, got {n}, {distances} and "
            f"{codec_distance}."
        )
    wanted = tuple(name for name in SECTIONS if name in only)
    settings = {"n": n, "temperature": 0, "strategy": strategy}
    total = n * sum(len(CODECS) + 1 if name == "codecs" else 1 for name in wanted)
    makes: dict[SectionName, Callable[[_Run], Section]] = {
        "distance": partial(_distance, at=tuple(sorted(set(distances)))),
        "facts": _facts,
        "codecs": partial(_codecs, turns=codec_distance),
        "blends": _blends,
        "decays": _decays,
    }
    with _Run(model, strategy, tokenizer, n, total, on_progress) as run:
        sections = tuple(makes[name](run) for name in wanted)
        return Recall(model, run.fingerprint, sections, settings)


class _Run:
    """The model, held until the end, and the cases that were run on it."""

    def __init__(
        self,
        model: str,
        strategy: str,
        tokenizer: Any,
        n: int,
        total: int,
        on_progress: Progress | None,
    ) -> None:
        self._n, self._total, self._done = n, total, 0
        self._on_progress = on_progress
        self._chat = partial(
            ChatRWKV,
            model=model,
            strategy=strategy,
            tokenizer=tokenizer,
            temperature=0,
            max_tokens=MAX_TOKENS,
            prefix_cache=False,
        )
        self._holding = self._chat(store=MemoryStateStore())
        runtime = self._holding.loaded().runtime
        self.fingerprint = runtime.fingerprint
        self._at_once = max(1, min(_AT_ONCE, _STATES_BYTES // (4 * runtime.layout.nbytes)))

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._holding.unload()

    def outcomes(self, name: str, case: Case, codec: CodecName = "exact") -> Iterator[Outcome]:
        """Runs a case n times, many at once, on a store of its own; yields in the cases' order."""
        chat = self._chat(store=MemoryStateStore(codec=codec), slots=self._at_once)
        stopping = threading.Event()

        def run_one(number: int) -> list[Outcome]:
            with closing(Talks(chat, f"{name} {number}", stopping.is_set)) as talks:
                rng = Random(f"{name} {number}")  # noqa: S311  # chooses questions, not secrets
                return list(case(talks, rng, number))

        try:
            with ThreadPoolExecutor(self._at_once, thread_name_prefix="rwkv-recall") as pool:
                try:
                    for found in pool.map(run_one, range(self._n)):
                        self._done += 1
                        if self._on_progress is not None:
                            self._on_progress(self._done, self._total)
                        yield from found
                finally:
                    stopping.set()  # whoever is left (Ctrl-C, an error) is not waited for
        finally:
            chat.unload()


def _distance(run: _Run, at: Sequence[int]) -> Section:
    outcomes = run.outcomes("distance", partial(cases.at_distances, distances=at))
    series = _counted(outcomes, (cases.STATE, cases.REPLAY), at)
    title = "One fact, after so many other turns"
    return Section("distance", title, "other turns since the fact", series)


def _facts(run: _Run) -> Section:
    outcomes = run.outcomes("facts", cases.of_many)
    series = _counted(outcomes, (cases.STATE, cases.REPLAY), cases.COUNTS)
    return Section("facts", "Each of so many facts", "facts told", series)


def _codecs(run: _Run, turns: int) -> Section:
    outcomes: list[Outcome] = []
    for codec in CODECS:
        case = partial(cases.through_a_store, label=codec, turns=turns)
        outcomes += run.outcomes("codecs", case, codec)
    outcomes += run.outcomes("codecs", cases.controls)
    at = (*CODECS, cases.ZERO, cases.STRANGER)
    title = f"One fact after {turns} other turn{'s' * (turns != 1)}, by the store's codec"
    return Section("codecs", title, "codec", _counted(outcomes, (cases.RECALLED,), at))


def _blends(run: _Run) -> Section:
    names = [name for pair in cases.BLENDED for name, _ in pair]
    series = _counted(run.outcomes("blends", cases.blended), names, cases.ALPHAS)
    title = "Two names, and a name and a city, of two conversations that were blended"
    return Section("blends", title, "alpha, weight of the first", series)


def _decays(run: _Run) -> Section:
    series = _counted(run.outcomes("decays", cases.decayed), (cases.RECALLED,), cases.FACTORS)
    return Section("decays", "One fact, its past made weaker", "factor", series)


def _counted(
    outcomes: Iterable[Outcome], names: Sequence[str], at: Sequence[float | str]
) -> tuple[Series, ...]:
    asked, right = Counter[tuple[str, float | str]](), Counter[tuple[str, float | str]]()
    for name, place, held in outcomes:
        asked[name, place] += 1
        right[name, place] += held
    return tuple(
        Series(name, tuple(Point(p, right[name, p], asked[name, p]) for p in at)) for name in names
    )
