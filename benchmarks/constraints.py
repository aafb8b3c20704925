"""Measures what it costs to hold answers to JSON schemas, and what comes of it.

Schemas are drawn at random, and a model of random weights answers at a temperature of 1.5: what it
would say is noise, so all that fits is the constraint's doing. Then the share of a decode step that
constraints take is measured, and what is saved by ids that need not be asked for. A constrained
answer and a free one are other texts, of other lengths, so the extra work is timed inside the step,
against plain sampling of the same row.

    python -m benchmarks.constraints [--quick] [--check] [-n 2000]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from jsonschema import Draft202012Validator

from benchmarks import common
from benchmarks.common import Check, Report
from benchmarks.models import write_2x128, write_apart
from langchain_rwkv_state.engine import Done, Engine, Request, Sampling
from langchain_rwkv_state.engine import constraints as engine_constraints
from langchain_rwkv_state.engine.constraints import Choice, Grammars, Guide
from langchain_rwkv_state.engine.sampler import LogitsRow, Sampler
from langchain_rwkv_state.engine.sequence import TokenSequence
from langchain_rwkv_state.grammar.constraint import (
    Constraint,
    calls_constraint,
    json_schema_constraint,
)
from langchain_rwkv_state.runtime import Runtime, load_runtime
from langchain_rwkv_state.tokenizer import WorldTokenizer

WORLD = WorldTokenizer()
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "hostname", "duration")
PATTERNS = ("^[a-z]{2,8}$", r"^\d{3}-\d{4}$", "^(GET|POST) /[a-z/]{1,12}$", "^#[0-9a-f]{6}$")
WORDS = ("name", "city", "when", "tags", "größe", "数量", "is_open", "price", "notes", "kind", "id")
TOOLS = (
    {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
    {
        "name": "search_files",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "maxLength": 40},
                "limit": {"type": "integer", "minimum": 1, "maximum": 100},
                "recursive": {"type": "boolean"},
            },
            "required": ["query", "limit", "recursive"],
        },
    },
    {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": -999, "maximum": 999},
                "b": {"type": "integer", "minimum": -999, "maximum": 999},
            },
            "required": ["a", "b"],
        },
    },
)
CALLS = calls_constraint(TOOLS, choice="any", parallel=False)
TEXTS = json_schema_constraint(
    {
        "type": "object",
        "properties": {"title": {"type": "string"}, "body": {"type": "string"}},
        "required": ["title", "body"],
    }
)


# -- schemas ---------------------------------------------------------------------------------


def schema(rng: Random, depth: int = 3) -> dict[str, Any]:
    """Returns a random schema: of nested objects and arrays, unions, enums, bounds and texts."""
    plain: list[Callable[[Random], dict[str, Any]]] = [_text, _number, _choice, _text, _number]
    if depth == 0:
        return rng.choice(plain)(rng)
    inner = [_object, _array, _union, _object]
    kind = rng.choice([*plain, *inner] if depth < 3 else inner)
    return kind(rng, depth - 1) if kind in inner else kind(rng)  # type: ignore[operator]


def tree(rng: Random) -> dict[str, Any]:
    """Returns a schema that refers to itself."""
    node = _object(rng, 1)
    names = [f"more_{n}" for n in range(rng.randint(1, 2))]
    again: list[dict[str, Any]] = [
        {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    ]
    node["properties"] |= {name: rng.choice(again) for name in names}
    node["required"] += names
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}


def _object(rng: Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randint(1, 4))
    found: dict[str, Any] = {
        "type": "object",
        "properties": {name: schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
    }
    if rng.random() < 0.2:
        found["additionalProperties"] = False
    return found


def _array(rng: Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    most = least + rng.randint(0, 2)
    if rng.random() < 0.2:
        first = [schema(rng, 0) for _ in range(max(least, 1))]
        return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}
    return {"type": "array", "minItems": least, "maxItems": most, "items": schema(rng, depth)}


def _union(rng: Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"type": [rng.choice(["integer", "boolean"]), "null"]}
    return {"anyOf": [schema(rng, depth) for _ in range(rng.randint(2, 3))]}


def _text(rng: Random) -> dict[str, Any]:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string", "format": rng.choice(FORMATS)}
    if kind == 1:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    least = rng.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 20)}


def _number(rng: Random) -> dict[str, Any]:
    low = rng.randint(-1000, 1000)
    high = low + rng.randint(0, 10_000)
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "integer", "multipleOf": rng.choice([2, 5]), "minimum": 0, "maximum": 990}
    if kind == 1:
        return {"type": "number", "minimum": low, "maximum": high + 0.5}
    if kind == 2:
        return {"type": "integer", "exclusiveMinimum": low, "maximum": high + 1}
    return {"type": "integer", "minimum": low, "maximum": high}


def _choice(rng: Random) -> dict[str, Any]:
    values: list[Any] = [
        "north",
        "south",
        "né",
        "漢字",
        'say "hi"\n',
        "",
        3,
        -1.5,
        None,
        True,
        [1],
        {},
    ]
    if rng.random() < 0.2:
        return {"const": rng.choice(values)}
    if rng.random() < 0.2:
        return {"type": "boolean"}
    return {"enum": rng.sample(values, rng.randint(1, 5))}


# -- what comes of it ------------------------------------------------------------------------


def canonical(text: str) -> list[int]:
    return WORLD.encode(f" {text.strip()}") if text.strip() else []


def request(
    runtime: Runtime, constraint: Constraint | None, number: int, *, max_tokens: int, **more: Any
) -> Request:
    return Request(
        runtime.zero_state(),
        [0, *WORLD.encode(f"User: {number}\n\nAssistant:")],
        max_tokens=max_tokens,
        stop_ids=WORLD.eos_ids,
        canonical=canonical,
        constraint=constraint,
        **{"sampling": Sampling(seed=number, temperature=1.5, top_p=1)} | more,
    )


def measure_schemas(report: Report, runtime: Runtime, n: int) -> None:
    """Notes how many answers at random parse, fit their schemas, and are read again."""
    schemas = [tree(rng) if k % 10 == 0 else schema(rng) for k, rng in _rngs(n)]
    engine = Engine(runtime, WORLD)
    engine.prepare(CALLS)  # the vocabulary
    compiling: list[float] = []
    counts = dict.fromkeys(("finished", "cut", "wrong", "reread", "ids", "forced"), 0)
    for start in range(0, n, 64):
        handles = []
        for number in range(start, min(start + 64, n)):
            constraint = json_schema_constraint(schemas[number])
            compiling.append(common.seconds(lambda one=constraint: engine.prepare(one)))  # type: ignore[misc]
            handles.append(engine.submit(request(runtime, constraint, number, max_tokens=256)))
        for number, handle in enumerate(handles, start):
            done = handle.result()
            counts["ids"] += done.answer_tokens
            counts["forced"] += done.forced_tokens
            counts["reread"] += done.reread
            if done.finish_reason == "length":
                counts["cut"] += 1
                continue
            counts["finished"] += 1
            counts["wrong"] += not _fits(done.text, schemas[number])
    engine.close()
    compiling.sort()
    report.results["schemas"] = counts | {
        "schemas": n,
        "compile_ms_median": 1000 * statistics.median(compiling),
        "compile_ms_p99": 1000 * compiling[int(0.99 * (n - 1))],
    }
    right = 100 * (1 - counts["wrong"] / max(counts["finished"], 1))
    report.add(
        Check(
            "finished answers that parse and fit", right, 100, "at least", "%", counts["finished"]
        )
    )
    report.add(Check("answers read again for their ids", counts["reread"], 0, "at most", "", n))


def _rngs(n: int) -> Iterator[tuple[int, Random]]:
    return ((number, Random(f"schema {number}")) for number in range(n))


def _fits(text: str, of: dict[str, Any]) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    checker = Draft202012Validator.FORMAT_CHECKER
    return bool(Draft202012Validator(of, format_checker=checker).is_valid(value))


# -- what it costs ---------------------------------------------------------------------------


@dataclass
class Step:
    """One step of an engine.

    Attributes:
        rows: Choices that were made in it.
        computed: Processor time of all threads in it, without what only this benchmark does.
        guided: Processor time of the choices, in seconds.
        drawn: How much of that went into drawing ids.
        plain: Processor time of plain choices of the same rows.
        draws: Ids drawn; more than rows, where some would not have been canonical.
    """

    rows: int = 0
    computed: float = 0.0
    guided: float = 0.0
    drawn: float = 0.0
    plain: float = 0.0
    draws: int = 0


@contextmanager
def watched(engine: Engine) -> Iterator[list[Step]]:
    """Yields the steps that an engine takes meanwhile.

    All is processor time, so that a busy machine slows what is compared alike.
    """
    steps: list[Step] = []
    choose, draw, step = Guide.choose, Sampler.choose, engine._step
    twin = Sampler(Sampling(seed=1, temperature=1.5, top_p=1))

    def timed_step() -> None:
        steps.append(Step())
        start = time.process_time()
        step()
        steps[-1].computed += time.process_time() - start

    def timed_choice(guide: Guide, row: LogitsRow, sampler: Sampler) -> Choice:
        now, start = steps[-1], time.thread_time()
        draw(twin, row)
        seconds = time.thread_time() - start
        now.plain += seconds
        now.computed -= seconds
        start = time.thread_time()
        found = choose(guide, row, sampler)
        now.guided += time.thread_time() - start
        now.rows += 1
        return found

    def timed_draw(sampler: Sampler, row: LogitsRow, allowed: Any = None) -> int:
        start = time.thread_time()
        found = draw(sampler, row, allowed)
        steps[-1].drawn += time.thread_time() - start
        steps[-1].draws += 1
        return found

    guides: Any = Guide
    samplers: Any = Sampler
    sequences: Any = TokenSequence
    one: Any = engine
    ahead = TokenSequence.choice_ahead
    guides.choose, samplers.choose, one._step = timed_choice, timed_draw, timed_step
    # Masks and draws happen in the guide then, where their time can be told from the others'.
    sequences.choice_ahead = lambda _: None
    try:
        yield steps
    finally:
        guides.choose, samplers.choose, sequences.choice_ahead = choose, draw, ahead


def measure_share(report: Report, runtime: Runtime, batches: list[int], rounds: int) -> None:
    """Notes which share of a decode step the constraint takes."""
    rows = {}
    for name, constraint in (("calls", CALLS), ("texts", TEXTS)):
        for batch in batches:
            engine, first = Engine(runtime, WORLD, slots=batch), 0
            engine.prepare(constraint)
            with watched(engine) as steps:
                for round_ in range(rounds + 1):
                    if round_ == 1:
                        first = len(steps)  # those before made what is known of the grammar
                    numbers = [1000 * round_ + n for n in range(batch)]
                    requests = [request(runtime, constraint, n, max_tokens=32) for n in numbers]
                    for handle in [engine.submit(one) for one in requests]:
                        handle.result()
                engine.close()
            row = _share([step for step in steps[first:] if step.rows >= 0.75 * batch])
            rows[f"{name}, B={batch}"] = row
            what = f"constraint's share of a step, {name}, B={batch}"
            for column, how in (("share_percent", ""), ("undrawn_percent", ", without drawing")):
                found = row[column]
                report.add(Check(what + how, found, 5, "at most", "%", int(row["steps"])))
    report.results["share"] = rows


def _share(steps: list[Step]) -> dict[str, float]:
    """Returns what constraints took of steps in which nearly all rows chose an id."""
    # As if all threads computed all the time: a step takes no less.
    step_ms = 1000 * statistics.mean(step.computed for step in steps) / torch.get_num_threads()
    extra = statistics.mean(1000 * (step.guided - step.plain) for step in steps)
    undrawn = statistics.mean(1000 * (step.guided - step.drawn) for step in steps)
    return {
        "steps": len(steps),
        "step_ms": step_ms,
        "share_percent": 100 * extra / step_ms,
        "undrawn_percent": 100 * undrawn / step_ms,
        "draws_a_choice": sum(step.draws for step in steps) / sum(step.rows for step in steps),
    }


def measure_masks(report: Report, vocab_size: int, walks: int) -> None:
    """Notes how much processor time masks take, one by one and for 64 rows."""
    grammars = Grammars(WORLD, vocab_size)
    rng, single, many = Random("masks"), [], []
    constraints = [CALLS, *(json_schema_constraint(schema(rng)) for _ in range(15))]
    for _ in range(walks):
        chosen = [rng.choice(constraints) for _ in range(64)]
        matchers = [grammars._matcher(each.grammar) for each in chosen]
        for _ in range(20):
            masks, began = [], time.thread_time()
            for matcher in matchers:
                start = time.thread_time()
                masks.append(matcher.compute_bitmask())
                single.append(time.thread_time() - start)
            many.append(time.thread_time() - began)
            for matcher, mask in zip(matchers, masks, strict=True):
                bits = int.from_bytes(mask, "little")

                token = _some_bit(bits & ~1, rng)
                if token:
                    matcher.consume_token(token)
                if matcher.is_stopped():
                    matcher.reset()
    single.sort()
    report.results["masks"] = {
        "median_ms": 1000 * statistics.median(single),
        "p99_ms": 1000 * single[int(0.99 * len(single))],
        "rows_64_median_ms": 1000 * statistics.median(many),
    }
    found = report.results["masks"]
    report.add(Check("a mask, median", found["median_ms"], 0.1, "at most", "ms", len(single)))
    report.add(Check("a mask, 99 %", found["p99_ms"], 2, "at most", "ms", len(single)))
    report.add(Check("64 masks", found["rows_64_median_ms"], 10, "at most", "ms", len(many)))


def _some_bit(bits: int, rng: Random) -> int:
    """Returns the place of a bit that is set, from a random one on; 0 for none."""
    if not bits:
        return 0
    above = bits >> (start := rng.randrange(bits.bit_length()))
    return start + (above & -above).bit_length() - 1


def measure_forced(report: Report, runtime: Runtime, calls: int) -> None:
    """Notes how many ids of calls are forced, and what time that saves one conversation."""
    engine = Engine(runtime, WORLD, slots=1)
    engine.prepare(CALLS)
    held: Any = engine_constraints._Held
    forced = held.forced

    def run(number: int) -> Done:
        greedy = Sampling(temperature=0)
        return engine.submit(
            request(runtime, CALLS, number, max_tokens=64, sampling=greedy)
        ).result()

    def unforced(number: int) -> None:
        def none(guide: Any) -> list[int]:
            guide._begun = True
            return []

        held.forced = none
        try:
            run(number)
        finally:
            held.forced = forced

    times = common.interleaved_seconds({"forced": run, "asked": unforced}, calls)
    done = [run(number) for number in range(calls)]
    engine.close()
    ids, saved = sum(one.answer_tokens for one in done), sum(one.forced_tokens for one in done)
    report.results["forced"] = {
        "calls": calls,
        "ids": ids,
        "forced_percent": 100 * saved / ids,
        "seconds": sum(times["forced"]),
        "seconds_all_asked": sum(times["asked"]),
        "time_saved_percent": 100 * (1 - sum(times["forced"]) / sum(times["asked"])),
    }


def show(report: Report) -> None:
    """Prints what was found."""
    for name, found in report.results.items():
        rows = found if all(isinstance(row, dict) for row in found.values()) else {name: found}
        head = [*next(iter(rows.values()))]
        common.print_table(
            name,
            ["", *head],
            [[row, *(f"{each[column]:.4g}" for column in head)] for row, each in rows.items()],
        )


def main() -> int:
    parser = common.parser("Measures what constraints cost, and what comes of them.")
    parser.add_argument("-n", type=int, help="schemas (2000; 12 if quick)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    quick = arguments.quick
    n = arguments.n or (12 if quick else 2000)
    batches = [1, 4] if quick else [1, 16, 64]
    report = Report("constraints", {"threads": arguments.threads, "n": n, "batches": batches})
    with tempfile.TemporaryDirectory() as directory:
        small = load_runtime(str(write_2x128(Path(directory) / "small.pth")))
        measure_schemas(report, small, n)
        small.close()
        measure_masks(report, 65_536, 1 if quick else 20)
        large = load_runtime(str(write_apart(Path(directory) / "model.pth", quick=quick)))
        measure_share(report, large, batches, 1 if quick else 4)
        measure_forced(report, large, 2 if quick else 20)
        large.close()
    show(report)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
