"""Writes the figures into the pages of docs/, from the JSON files of the benchmarks or computed.

It measures nothing and phrases nothing: the page's text is written by hand, and each table stands
between ``<!-- name -->`` and ``<!-- /name -->``. A table that is edited by hand is written over by
the next run.

    python -m benchmarks.tables
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import agent_thread, public_models, sizes
from benchmarks.agent_calls import STATE, TRANSCRIPT
from benchmarks.common import RESULTS
from benchmarks.crowd import WAYS
from benchmarks.cuda import estimate, pages
from benchmarks.recall import TARGETS
from benchmarks.sampling import GREEDY
from benchmarks.state_tables import (
    clamps,
    codecs,
    corrections,
    recalled,
    table,
    through_a_store,
)
from langchain_rwkv_state.toolbox.recall import SECTIONS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
PAGES = sorted(DOCS.rglob("*.md"))


def targets(report: dict[str, Any], gpu: dict[str, Any] | None = None) -> str:
    """Returns the figures that have a target.

    Args:
        report: A benchmark on the CPU.
        gpu: The same on a GPU, ``None`` where nobody ran it.
    """
    on_gpu = {check["name"]: check for check in (gpu or {"checks": []})["checks"]}
    rows = []
    for check in report["checks"]:
        pair = [check, on_gpu.get(check["name"])]
        figures = [_figure(each["measured"], check["unit"]) if each else "" for each in pair]
        missed = not all(each["passed"] for each in pair if each)
        target = f"{check['bound']} {_figure(check['target'], check['unit'])}"
        rows.append([check["name"], target, *figures, "**missed**" if missed else ""])
    return table(["what", "target", "CPU", "GPU", ""], rows)


def _figure(number: float, unit: str) -> str:
    return f"{number:.4g} {unit}".strip()


def recall(report: dict[str, Any]) -> str:
    """Returns what is remembered, row by row."""
    rows = []
    for name, found in report["results"].items():
        target = TARGETS.get(name)
        missed = target is not None and found["percent"] < target
        right = f"{found['right']} of {found['n']}"
        goal = "" if target is None else f"{target} %"
        percent = f"{found['percent']:.1f} %"
        rows.append([name, percent, right, goal, "**missed**" if missed else ""])
    return table(["what", "right", "cases", "target", ""], rows)


def started(report: dict[str, Any]) -> str:
    """Returns the seconds of each process to its first byte and to its end."""
    labels = {
        "python": "python, nothing imported",
        "package": "`import langchain_rwkv_state`",
        "help": "`rwkv-state --help`",
        "torch": "`import torch`",
        "langchain": "`import torch`, and LangChain's base class of a model",
        "stream": '`ChatRWKV(...).stream("hi")` to its end',
        "ask": '`rwkv-state "hi"`',
    }
    medians = report["results"]["medians"]
    rows = [
        [
            label,
            f"{medians[name]['first_byte_seconds']:.2f} s"
            * bool(medians[name]["first_byte_seconds"]),
            f"{medians[name]['whole_seconds']:.2f} s",
            f"{medians[name]['cpu_seconds']:.2f} s",
        ]
        for name, label in labels.items()
    ]
    return table(["process", "first byte", "end", "of a core, to its end"], rows)


def turns(report: dict[str, Any]) -> str:
    """Returns the time of early and late turns."""
    found = report["results"]["turns"]
    rows = [
        [
            str(row["turn"]),
            *(f"{row[f'{way}_seconds']:.2f} s" for way in ("session", "chain", "replay")),
            str(row["session_tokens_read"]),
            str(row["replay_tokens_read"]),
        ]
        for row in found["rows"]
    ]
    ratios = [f"{found['ratio'][way]:.3f}" for way in ("session", "chain", "replay")]
    rows.append(["last over first", *ratios, "", ""])
    head = ["turn", "`with_session`", "chain on a state", "the same chain on a transcript"]
    return table([*head, "tokens read, state", "tokens read, transcript"], rows)


def overhead(report: dict[str, Any]) -> str:
    """Returns a session's turn beside the bare loop's, and where its time goes."""
    found = report["results"]["overhead"]
    bare = found["bare_seconds"]
    beside = table(
        ["who", "median of a turn", "session's ratio to it"],
        [
            ["`with_session`, committed to disk", f"{1000 * found['session_seconds']:.0f} ms", ""],
            ["bare `rwkv` loop", f"{1000 * bare:.0f} ms", f"{found['ratio']:.3f}"],
        ],
    )
    parts = found["breakdown_ms"]
    total = parts["whole turn"]
    where = table(
        ["part of a turn", "ms (mean)", "share"],
        [[name, f"{ms:.2f}", f"{100 * ms / total:.2f} %"] for name, ms in parts.items()],
    )
    return f"{beside}\n\n{where}"


def resume(report: dict[str, Any]) -> str:
    """Returns the time of a resume, part by part."""
    found = report["results"]["resume"]
    again = found["reread_seconds"]
    rows = []
    for state, times in found["resume_seconds"].items():
        parts = [f"{1000 * times[part]:.1f} ms" for part in ("open", "head", "get", "total")]
        rows.append([f"resume, files {state}", *parts, f"{again / times['total']:.0f}"])
    name = f"reading {found['reread_tokens']:,} tokens again"
    rows.append([name, "", "", "", f"{1000 * again:.0f} ms", "1"])
    return table(["", "open the store", "head", "get the state", "whole", "times faster"], rows)


def stored(report: dict[str, Any]) -> str:
    """Returns the bytes of sessions of several lengths."""
    found = report["results"]["bytes"]
    rows = [
        [
            f"{row['tokens']:,}",
            str(row["history"]),
            f"{row['stored']:,}",
            f"{row['stored_over_nominal']:.4f}",
            f"{row['directory']:,}",
        ]
        for row in found["rows"]
    ]
    head = ["tokens", "`history`", "bytes stored", "of (1 + history) states"]
    return table([*head, "whole directory"], rows)


def speeds(report: dict[str, Any]) -> str:
    """Returns ids a second by contender, and who could not be measured."""
    found = report["results"]
    differ = found["largest_logit_difference"]
    rows = [
        [
            name,
            *(f"{by_cell[cell]:,.0f}" for cell in found["cells"]),
            f"{differ[name]:.0e}" if name in differ else "",
        ]
        for name, by_cell in found["speeds"].items()
    ]
    blank = [""] * len(found["cells"])
    rows += [[f"{name}: {reason}", *blank, ""] for name, reason in found["missing"].items()]
    return table(["ids a second", *found["cells"], "largest difference of a logit"], rows)


def speed_targets(report: dict[str, Any], gpu: dict[str, Any] | None = None) -> str:
    """Returns the ratios to peers, with both kinds of weights, and on a GPU where one was used."""
    on_gpu = {row["name"]: row["ratio"] for row in gpu["results"]["ratios"]} if gpu else {}
    rows = []
    for row in report["results"]["ratios"]:
        ratio = row["ratio"]
        verdict = "not measured" if ratio is None else "met"
        if ratio is not None and ratio < row["target"]:
            verdict = "**missed**"
        figures = [ratio, row["ratio_fp16"], on_gpu.get(row["name"])]
        rows.append(
            [
                row["name"],
                f"{row['target']:g}",
                *("" if each is None else f"{each:.2f}" for each in figures),
                verdict,
            ]
        )
    return table(["ratio", "at least", "CPU", "the same, weights in fp16", "GPU", ""], rows)


def talks(report: dict[str, Any]) -> str:
    """Returns what a conversation takes, held alone and in a crowd."""
    found = report["results"]["talks"]
    slowest = found["seconds_a_conversation"]["one_after_another"]
    rows = [
        [
            WAYS[way],
            str(found["conversations"][way]),
            f"{1000 * seconds:,.0f} ms",
            f"{slowest / seconds:.1f}",
            f"{found['answers_as_the_engine_alone'][way]:.0f} %",
        ]
        for way, seconds in found["seconds_a_conversation"].items()
    ]
    head = ["way", "conversations", "time for each", "times the throughput"]
    return table([*head, "answers as the engine alone"], rows)


def gaps(report: dict[str, Any]) -> str:
    """Returns the gaps beside a long prompt, by budget."""
    rows = [
        [
            f"{row['budget']}{' (default)' * row['default']}",
            f"{row['longest_steps']:.2f}",
            f"{row['median_steps']:.2f}",
            f"{1000 * row['step_seconds']:.0f} ms",
            f"{row['first_token_seconds']:.2f} s",
        ]
        for row in report["results"]["gap"]["rows"]
    ]
    head = ["`prefill_budget`", "longest gap, steps", "median gap, steps", "a step"]
    return table([*head, "the prompt's first token after"], rows)


def storm(report: dict[str, Any]) -> str:
    """Returns what came of conversations that come and go."""
    found = report["results"]["storm"]

    def waited(times: dict[str, float]) -> str:
        return f"{1000 * times['p50']:.0f} ms, {1000 * times['p99']:.0f} ms"

    quarter, end = (nbytes / 2**20 for nbytes in found["rss_bytes"])
    rows = [
        ["conversations, slots", f"{found['conversations']:,}, {found['slots']}"],
        ["arrivals a second", f"{found['arrivals_a_second']:.1f}"],
        ["given up", f"{found['cancelled']}"],
        ["answers compared with those alone", f"{found['answers']:,}"],
        ["the same", f"{found['same']:,}"],
        ["different where the two best logits are within 0.001", f"{found['near_ties']}"],
        ["different otherwise", f"{len(found['wrong'])}"],
        ["first token: p50, p99", waited(found["first_token"])],
        ["whole answer, committed: p50, p99", waited(found["whole"])],
        ["the process, at a quarter and at the end", f"{quarter:.0f} MiB, {end:.0f} MiB"],
    ]
    return table(["what", "measured"], rows)


def memory(report: dict[str, Any]) -> str:
    """Returns what a model and its conversations take."""
    found = report["results"]["memory"]
    rows = [
        ["weights in the file", f"{found['weights']:,}"],
        ["the process grows by, once loaded", f"{found['loaded']:,}"],
        ["a state", f"{found['state']:,}"],
        ["one more conversation in a slot", f"{found['conversation']:,.0f}"],
        [
            f"{found['conversations']} conversations grow by, each reading {found['tokens']} ids",
            f"{found['grown']:,}",
        ],
    ]
    return table(["what", "bytes"], rows)


def sampled(report: dict[str, Any]) -> str:
    """Returns tokens a second, greedy, and what of them is left with each template's sampling."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in report["results"]["rows"]:
        found.setdefault((row["way"], row["n"]), {})[row["settings"]] = row
    names = [name for name in report["settings"]["settings"] if name != GREEDY]
    rows = [
        [
            *(way, str(n), f"{each[GREEDY]['tokens_a_second']:,.0f}"),
            *(f"{each[name]['ratio']:.3f}" for name in names),
        ]
        for (way, n), each in found.items()
    ]
    return table(["through", "at once", "greedy, tokens a second", *names], rows)


def divergence(report: dict[str, Any]) -> str:
    """Returns the divergence of 8 bits from fp32."""
    rows = [
        [name, *(f"{kl[what]:.1e}" for what in ("mean", "p99", "max")), f"{kl['places']:,}"]
        for name, kl in report["results"]["kl"].items()
    ]
    return table(["next-token KL, nats", "mean", "99 %", "largest", "places"], rows)


def loading(report: dict[str, Any]) -> str:
    """Returns what each form of a checkpoint costs to load."""
    rows = [
        [
            name,
            f"{row['seconds']:.2f} s",
            f"{row['seconds_ratio']:.2f}",
            f"{row['bytes'] / 1e6:,.0f} MB",
            f"{row['bytes_ratio']:.2f}",
        ]
        for name, row in report["results"]["loading"].items()
    ]
    return table(["form", "time", "times the .pth", "peak", "times the .pth"], rows)


def beside_llama_cpp(report: dict[str, Any]) -> str:
    """Returns how far logits are from llama.cpp's."""
    found = report["results"]["llama.cpp"]
    if isinstance(found, str):
        return found
    keys = ("same_file", "same_numbers", "llama_cpp_itself")
    rows = [[name, *(f"{row[key]:.0e}" for key in keys)] for name, row in found.items()]
    head = ["file", "llama.cpp on the same file", "llama.cpp on the numbers read, in f32"]
    return table([*head, "between the two of llama.cpp"], rows)


def rounded_recall(report: dict[str, Any]) -> str:
    """Returns what is remembered in fp32 and in 8 bits."""
    found = report["results"]["recall"]
    rows = [
        [name, f"{row['fp32']:.1f} %", f"{row['int8']:.1f} %", str(row["n"])]
        for name, row in found["rows"].items()
    ]
    together = found["all"]
    last = ["all rows with a target", f"{together['fp32']:.2f} %", f"{together['int8']:.2f} %"]
    return table(["what", "fp32", "int8", "cases"], [*rows, [*last, str(found["n"])]])


def prefix_trace(report: dict[str, Any]) -> str:
    """Returns what a cache of few states saves of a trace of system prompts."""
    found = report["results"]["zipf"]
    names = {"ours": "this cache", "lru": "plain LRU", "oracle": "an oracle, which knows the rest"}
    rows = [
        [names[name], f"{found['tokens_hit'][name]:,}", f"{100 * share:.1f} %"]
        for name, share in found["share"].items()
    ]
    return table(["policy", "tokens hit", "of those of the system prompts"], rows)


def prefix_cost(report: dict[str, Any]) -> str:
    """Returns what a lookup and an insert cost, by the number of entries."""
    rows = [
        [f"{row['entries']:,}", f"{row['lookup']:.0f} us", f"{row['insert']:.0f} us"]
        for row in report["results"]["cost_microseconds"]
    ]
    return table(["entries of 1,000 tokens", "lookup", "insert"], rows)


def staged(report: dict[str, Any]) -> str:
    """Returns what a crowd with large states lost, by way of talking, and what it took."""
    found = report["results"]
    rows = [
        [name, str(found[name]["of"]), str(found[name]["turns"]), str(found[name]["references"])]
        for name in ("sessions", "histories", "batch")
    ]
    megabytes = {name: f"{value / 2**20:,.0f} MB" for name, value in found["memory"].items()}
    spilling = found["spilling"]
    took = table(
        ["of the process", "most"],
        [
            [
                "staged states in memory (allowed " + megabytes["budget"] + ")",
                megabytes["staged most"],
            ],
            ["staged states in files", megabytes["spilled most"]],
            ["memory in all, 64 conversations at work among it", megabytes["rss most"]],
            ["a batch, beside one with memory for all", f"{spilling['times as long']:.2f} times"],
            ["the same, a state", f"{spilling['milliseconds a state']:.0f} ms"],
        ],
    )
    return f"{table(['way', 'turns', 'turns lost', 'references lost'], rows)}\n\n{took}"


def endured(report: dict[str, Any]) -> str:
    """Returns what was done under load."""
    found = report["results"]
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in sorted(found["done"].items())]
    rows += [[f"ended by {name}", f"{count:,}"] for name, count in sorted(found["wrong"].items())]
    return table(["what", "times"], rows)


def machine(report: dict[str, Any]) -> str:
    """Returns a line about the machine."""
    found = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    gpu = found["gpu"] or "no GPU"
    return (
        f"{report['date']}: {found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB, "
        f"{gpu}; {found['system']}, Python {found['python']}; {versions}."
    )


def held_schemas(report: dict[str, Any]) -> str:
    """Returns what came of answers that were held to random schemas."""
    found = report["results"]["schemas"]
    rows = [
        ["schemas", f"{found['schemas']:,}"],
        ["answers that finished", f"{found['finished']:,}"],
        ["of these, parse and fit their schema", f"{found['finished'] - found['wrong']:,}"],
        ["cut off by `max_tokens`", f"{found['cut']:,}"],
        ["read again because of their ids", f"{found['reread']:,}"],
        ["ids, of which forced", f"{found['ids']:,}, {found['forced']:,}"],
        ["compiling a schema, median", f"{found['compile_ms_median']:.1f} ms"],
    ]
    return table(["what", "figure"], rows)


def held_share(report: dict[str, Any]) -> str:
    """Returns the constraint's share of a decode step."""
    rows = [
        [
            name,
            f"{row['step_ms']:.1f} ms",
            f"{row['share_percent']:.1f} %",
            f"{row['undrawn_percent']:.1f} %",
            f"{row['draws_a_choice']:.2f}",
        ]
        for name, row in report["results"]["share"].items()
    ]
    head = ["rows", "a step", "constraint's share", "without drawing ids", "ids drawn a choice"]
    return table(head, rows)


def held_forced(report: dict[str, Any]) -> str:
    """Returns what forced ids save."""
    found = report["results"]["forced"]
    rows = [
        ["ids of a call that are forced", f"{found['forced_percent']:.0f} %"],
        ["time saved, against asking for each", f"{found['time_saved_percent']:.0f} %"],
    ]
    return table(["what", "figure"], rows)


def moved(report: dict[str, Any]) -> str:
    """Returns what each of LangChain's ways to remember reads and keeps, beside ours."""
    becomes = report["results"]["becomes"]
    rows = []
    for name, found in report["results"]["ways"].items():
        figures = [f"{found[key]:,}" for key in ("tokens", "last_turn", "cached_tokens")]
        kept = [_kilobytes(found["kept"]), _kilobytes(found["states"])]
        right = f"{found['right']} of {found['asked']}"
        rows.append([name, becomes.get(name, ""), *figures, *kept, right])
    head = ["way", "becomes", "tokens read", "in the last turn", "with the prefix cache"]
    return table([*head, "messages or checkpoints", "states", "right"], rows)


def _kilobytes(count: int) -> str:
    return f"{count / 1000:,.1f} kB" if count else ""


def agents_right(report: dict[str, Any]) -> str:
    """Returns how often the built-in model went rightly through an agent's loop."""
    rows = []
    for name in report["settings"]["samplings"]:
        for way in (TRANSCRIPT, STATE):
            found = report["results"][f"{name}, {way}"]
            shares = [f"{100 * found[key] / found['n']:.1f} %" for key in ("right", "called")]
            tools = [f"{each['right']} of {each['n']}" for each in found["by_tool"].values()]
            rows.append([f"{name}, {way}", *shares, *tools])
    tools = [f"`{name}`" for name in found["by_tool"]]
    return table(["how", "right", "right call", *tools], rows)


def thread_bytes(report: dict[str, Any]) -> str:
    """Returns the bytes of an agent's thread, turn by turn, beside those with the transcript."""
    ways = (STATE, TRANSCRIPT)
    kinds = ("largest_checkpoint", "checkpoint_bytes", "database")
    rows = [
        [
            str(turn + 1),
            *(f"{report['results'][way]['rows'][turn][kind]:,}" for kind in kinds for way in ways),
            f"{report['results'][STATE]['rows'][turn]['store']:,}",
        ]
        for turn in agent_thread.shown(report["settings"]["turns"])
    ]
    named = ("its largest checkpoint", "all its checkpoints", "the database after it")
    heads = [f"{kind}, {way}" for kind in named for way in ("state", "transcript")]
    return table(["turn", *heads, "store of states after it"], rows)


def thread_tokens(report: dict[str, Any]) -> str:
    """Returns what the turns of an agent's thread made the model read, and how long they took."""
    ways = [report["results"][way]["rows"] for way in agent_thread.WAYS]
    rows = []
    for turn in agent_thread.shown(report["settings"]["turns"]):
        near = slice(max(turn - 2, 0), turn + 3)
        read = [
            f"{way[turn]['tokens_read']:,} ({way[turn]['most_read_by_a_call']:,})" for way in ways
        ]
        took = [statistics.median(row["seconds"] for row in way[near]) for way in ways]
        rows.append([str(turn + 1), *read, *(f"{each:.2f} s" for each in took)])
    named = ("state", "transcript", "transcript and prefix cache")
    heads = [f"{what}, {way}" for what in ("tokens", "time") for way in named]
    return table(["turn", *heads], rows)


def stores(report: dict[str, Any]) -> str:
    """Returns commits a second and how long one takes, by store, size and number of processes."""
    settings, rows = report["settings"], []
    for size in settings["commits"]:
        for name, by in report["results"][size].items():
            for processes, each in by.items():
                times = [f"{each[key]:.1f} ms" for key in ("p50_ms", "p99_ms", "read_p50_ms")]
                rows.append([size, name, processes, f"{each['commits_per_second']:.1f}", *times])
    head = ["state", "store", "processes", "commits a second", "commit, p50", "p99", "read, p50"]
    return table(head, rows)


def serve_talk(report: dict[str, Any]) -> str:
    """Returns what a turn by HTTP takes, by the id of the answer before and by transcripts."""
    ways, rows = ("by id", "transcript", "transcript, cached"), []
    for row in report["results"]["rows"]:
        each = [row[way] for way in ways]
        times = [f"{one['seconds']:.2f} s" for one in each]
        reads = [f"{one['tokens_read']:,}" for one in each]
        rows.append(
            [str(row["turn"]), *times, *reads, *(f"{each[at]['sent_bytes']:,}" for at in (0, 1))]
        )
    named = ("by id", "transcript", "transcript and prefix cache")
    heads = [f"{what}, {way}" for what in ("time", "tokens read") for way in named]
    return table(["turn", *heads, "bytes said, by id", "bytes said, transcript"], rows)


TABLES: dict[str, tuple[str, Callable[..., str]]] = {
    "machine": ("conversation", machine),
    "recall targets": ("recall", targets),
    "recall": ("recall", recall),
    "conversation targets": ("conversation", targets),
    "turns": ("conversation", turns),
    "overhead": ("conversation", overhead),
    "resume": ("conversation", resume),
    "bytes": ("conversation", stored),
    "store targets": ("store", targets),
    "stores machine": ("stores", machine),
    "stores": ("stores", stores),
    "serve talk machine": ("serve_talk", machine),
    "serve talk": ("serve_talk", serve_talk),
    "serve talk targets": ("serve_talk", targets),
    "speed machine": ("speed", machine),
    "speeds": ("speed", speeds),
    "speed targets": ("speed", speed_targets),
    "card": ("cuda", pages.machine),
    "correct on a card": ("cuda", pages.correct),
    "speeds on a card": ("cuda", pages.alone),
    "peers on a card": ("cuda", pages.beside),
    "chat on a card": ("cuda", pages.chat),
    "card targets": ("cuda", targets),
    "crowd machine": ("crowd", machine),
    "talks": ("crowd", talks),
    "gaps": ("crowd", gaps),
    "storm": ("crowd", storm),
    "memory": ("crowd", memory),
    "crowd targets": ("crowd", targets),
    "staging machine": ("staging", machine),
    "staged": ("staging", staged),
    "staging targets": ("staging", targets),
    "endurance machine": ("endurance", machine),
    "endured": ("endurance", endured),
    "endurance targets": ("endurance", targets),
    "sampling machine": ("sampling", machine),
    "sampled": ("sampling", sampled),
    "sampling targets": ("sampling", targets),
    "divergence": ("int8", divergence),
    "int8 recall": ("int8", rounded_recall),
    "int8 targets": ("int8", targets),
    "model files machine": ("model_files", machine),
    "loading": ("model_files", loading),
    "beside llama.cpp": ("model_files", beside_llama_cpp),
    "model files targets": ("model_files", targets),
    "startup machine": ("startup", machine),
    "started": ("startup", started),
    "startup targets": ("startup", targets),
    "constraints machine": ("constraints", machine),
    "held schemas": ("constraints", held_schemas),
    "held share": ("constraints", held_share),
    "held forced": ("constraints", held_forced),
    "constraint targets": ("constraints", targets),
    "corrections": ("corrections", corrections),
    "clamps": ("corrections", clamps),
    "codecs on the demo model": ("codecs", codecs("demo")),
    "codecs on 12x768": ("codecs", codecs("12x768")),
    "codec machine": ("codecs", machine),
    "codecs in a store": ("codecs", through_a_store),
    "codec targets": ("codecs", targets),
    "retention machine": ("retention", machine),
    "retention targets": ("retention", targets),
    **{f"recalled: {name}": ("retention", recalled(name)) for name in SECTIONS},
    "moving machine": ("moving", machine),
    "moving": ("moving", moved),
    "agent machine": ("agent_thread", machine),
    "agents right": ("agent_calls", agents_right),
    "agent targets": ("agent_calls", targets),
    "thread bytes": ("agent_thread", thread_bytes),
    "thread tokens": ("agent_thread", thread_tokens),
    "thread targets": ("agent_thread", targets),
    "prefix machine": ("prefix_cache", machine),
    "prefix targets": ("prefix_cache", targets),
    "prefix trace": ("prefix_cache", prefix_trace),
    "prefix cost": ("prefix_cache", prefix_cost),
}
"""By the name in the page: which benchmark it comes from, and how it is written."""


COMPUTED: dict[str, Callable[[], str]] = {
    "public models": public_models.table,
    "sizes": sizes.table,
    "estimate": estimate.page,
}
"""By the name in the page: tables that need no measurement."""


def fill(page: str, results: Path = RESULTS) -> str:
    """Returns the page with each of its tables whose JSON exists written anew."""
    for name, (benchmark, write) in TABLES.items():
        source = results / f"{benchmark}.json"
        if _mark(name) not in page or not source.exists():
            continue
        report = json.loads(source.read_text("utf-8"))
        other = results / f"{benchmark}_cuda.json"
        if write in (targets, speed_targets) and other.exists():
            text = write(report, json.loads(other.read_text("utf-8")))
        else:
            text = write(report)
        page = _with(page, name, text)
    for name, compute in COMPUTED.items():
        if _mark(name) in page:
            page = _with(page, name, compute())
    return page


def _mark(name: str) -> str:
    return f"<!-- {name} -->"


def _with(page: str, name: str, text: str) -> str:
    """Returns the page with one table written anew."""
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


def fill_all() -> None:
    """Writes the tables of all pages anew."""
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    fill_all()
