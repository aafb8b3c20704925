"""Times a talk by HTTP turn by turn: by the id of the answer before, and by resent transcripts.

The model is a random RWKV-7 as large as 0.1B, whose answers mean nothing; the client is the stock
``openai`` package, asking for responses. Every question has as many tokens as the next, and every
answer too. Any turn can be branched by an id, so early and late turns are done again by turns, in
one run, each from where it began. A transcript is sent to a server without a prefix cache, as the
house's benchmarks have it, and once to one with it, which is how the server comes.

    python -m benchmarks.serve_talk [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types.responses import Response

from benchmarks import common
from benchmarks.common import Check, Report
from benchmarks.conversation import SYSTEM, question
from benchmarks.models import write_apart
from langchain_rwkv_state.serve import ServeSettings
from tests.helpers.server import serving

GOAL = 1.1


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        points: Turns that are compared; the first and the last give the ratio.
        answer_tokens: Length of each answer.
        rounds: Repetitions of a turn by id.
        replays: Repetitions of a turn by its transcript.
    """

    points: tuple[int, ...] = (2, 10, 25, 50)
    answer_tokens: int = 32
    rounds: int = 9
    replays: int = 3


QUICK = Sizes((2, 4), 4, 2, 1)


@dataclass(frozen=True)
class Asked:
    """What came of a turn.

    Attributes:
        response: The answer.
        seconds: How long it took.
        sent_bytes: Length of what was said, as JSON.
    """

    response: Response
    seconds: float
    sent_bytes: int

    @property
    def read(self) -> int:
        """How many tokens the model read for it."""
        usage = self.response.usage
        if usage is None:
            raise ValueError("The answer does not say how many tokens were read.")
        return usage.input_tokens - usage.input_tokens_details.cached_tokens


class Talk:
    """A talk with a server.

    Args:
        client: Asks.
        model: What the model is called.
        answer_tokens: Length of each answer.
    """

    def __init__(self, client: OpenAI, model: str, answer_tokens: int) -> None:
        self._client = client
        self._options: dict[str, Any] = {
            "model": model,
            "instructions": SYSTEM,
            "temperature": 0,
            "max_output_tokens": answer_tokens,
        }

    def by_id(self, turn: int, before: str | None) -> Asked:
        """Asks a turn's question behind an answer."""
        return self._ask(question(turn), previous_response_id=before)

    def by_transcript(self, turn: int, said: list[str]) -> Asked:
        """Asks a turn's question behind all that was said."""
        items = [
            {"role": "assistant" if at % 2 else "user", "content": text}
            for at, text in enumerate([*said, question(turn)])
        ]
        return self._ask(items, store=False)

    def _ask(self, said: Any, **options: Any) -> Asked:
        start = time.perf_counter()
        response: Response = self._client.responses.create(input=said, **options, **self._options)
        return Asked(response, time.perf_counter() - start, len(json.dumps(said)))


def measure(talk: Talk, sizes: Sizes) -> dict[tuple[str, int], list[Asked]]:
    """Holds the talk by ids, then does turns of it again in both ways, by turns."""
    ids: list[str | None] = [None]
    said: list[str] = []
    found: dict[tuple[str, int], list[Asked]] = defaultdict(list)
    for turn in range(1, max(sizes.points) + 1):
        asked = talk.by_id(turn, ids[-1])
        ids.append(asked.response.id)
        said += [question(turn), asked.response.output_text]
        found["talk", turn].append(asked)
    for round_, turn in itertools.product(range(sizes.rounds), sizes.points):
        found["by id", turn].append(talk.by_id(turn, ids[turn - 1]))
        if round_ < sizes.replays:
            found["transcript", turn].append(talk.by_transcript(turn, said[: 2 * (turn - 1)]))
    return found


def measure_cached(talk: Talk, sizes: Sizes) -> dict[tuple[str, int], list[Asked]]:
    """Holds the talk by transcripts, each sent once, to a server with a prefix cache."""
    said: list[str] = []
    found: dict[tuple[str, int], list[Asked]] = {}
    for turn in range(1, max(sizes.points) + 1):
        asked = talk.by_transcript(turn, said)
        said += [question(turn), asked.response.output_text]
        found["transcript, cached", turn] = [asked]
    return found


WAYS = ("by id", "transcript", "transcript, cached")


def tell(report: Report, found: dict[tuple[str, int], list[Asked]], sizes: Sizes) -> None:
    """Writes down what was found, and holds it to its goals."""
    rows = []
    for turn in sizes.points:
        row: dict[str, Any] = {"turn": turn}
        for way in WAYS:
            asked = found[way, turn]
            row[way] = {
                "seconds": statistics.median(each.seconds for each in asked),
                "tokens_read": asked[0].read,
                "sent_bytes": asked[0].sent_bytes,
                "n": len(asked),
            }
        texts = {found[way, turn][0].response.output_text for way in WAYS}
        row["same_answer"] = len(texts) == 1
        rows.append(row)
    turns = range(2, max(sizes.points) + 1)  # the first reads the instructions
    reads = [found["talk", turn][0].read for turn in turns]
    report.results["rows"] = rows
    report.results["each_turn"] = [
        {"seconds": each.seconds, "tokens_read": each.read}
        for turn in range(1, max(sizes.points) + 1)
        for each in found["talk", turn]
    ]
    first, last = rows[0], rows[-1]
    name = f"turn {last['turn']} against turn {first['turn']}, by id"
    more = max(reads) - min(reads)
    report.add(Check("tokens read, most to least of a turn", more, 0, "at most", "", len(reads)))
    ratio = last["by id"]["seconds"] / first["by id"]["seconds"]
    report.add(Check(f"{name}: time", ratio, GOAL, "at most", "x", sizes.rounds))
    common.print_table(
        "A turn by HTTP",
        ["turn", *(f"{what}, {way}" for what in ("time", "read") for way in WAYS)],
        [
            [
                str(row["turn"]),
                *(f"{row[way]['seconds']:.3f} s" for way in WAYS),
                *(f"{row[way]['tokens_read']:,}" for way in WAYS),
            ]
            for row in rows
        ],
    )


def main() -> int:
    """Runs the benchmark."""
    arguments = common.parser("A talk by HTTP.").parse_args()
    quick = arguments.quick
    sizes = QUICK if quick else Sizes()
    report = Report("serve_talk", {"points": sizes.points, "answer_tokens": sizes.answer_tokens})
    found: dict[tuple[str, int], list[Asked]] = {}
    with tempfile.TemporaryDirectory() as name:
        path = write_apart(Path(name) / "large.pth", quick=quick, speaking=True)
        for cached in (False, True):
            settings = ServeSettings(
                model=str(path),
                store=str(Path(name) / f"states {cached}"),
                options=None if cached else {"prefix_cache": False},
            )
            with (
                serving(settings) as url,
                OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            ):
                talk = Talk(client, settings.model_name, sizes.answer_tokens)
                found |= (measure_cached if cached else measure)(talk, sizes)
    tell(report, found, sizes)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
