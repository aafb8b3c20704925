"""Checks a model for ``doctor --model``: its files, its memory, its speed.

All but the trial looks at names and shapes alone. The trial says what one conversation gets now,
beside whatever else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_rwkv_state._text import counted, model_shape
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.device_check import slower_of
from langchain_rwkv_state.cli.findings import Finding

if TYPE_CHECKING:
    import torch

    from langchain_rwkv_state.runtime.checkpoint import Checkpoint
    from langchain_rwkv_state.runtime.strategy import Strategy

TRIAL_SECONDS = 3.0
_WARM_UP_STEPS = 8


def check_files(name: str) -> Iterator[Finding]:
    """Says what a model's files are and what it will take; loads nothing into a runtime.

    Args:
        name: The model, as for `load_runtime`.
    """
    from langchain_rwkv_state.errors import ModelLoadError
    from langchain_rwkv_state.loaded import trained_on
    from langchain_rwkv_state.runtime import locate
    from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_contents
    from langchain_rwkv_state.runtime.strategy import Strategy
    from langchain_rwkv_state.tokenizer import load_tokenizer

    path = locate(name)
    contents = read_contents(path, mapped=True)
    yield Finding("form", contents.form)
    sizes = sum(file.stat().st_size for file in contents.files)
    files = f"{counted(len(contents.files), 'file')} in {path}" if path.is_dir() else str(path)
    yield Finding("files", f"{files}, {output.size(sizes)}", figure=sizes, unit="bytes")
    found = Checkpoint.of(contents.tensors, path)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in contents.tensors.values()})
    shape = model_shape(found.version, found.n_layer, found.n_embd)
    yield Finding("model", f"{shape}, {found.vocab_size:,} tokens, {' and '.join(dtypes)}")
    yield Finding("weights", found.weights)
    yield Finding("template", trained_on(name, path).name)
    try:
        tokenizer = load_tokenizer(None, model_path=path, vocab_size=found.vocab_size)
        yield Finding("tokenizer", repr(tokenizer))
    except ModelLoadError as problem:  # it hides nothing of what comes behind
        advice = (
            "Put the model's tokenizer.json beside its file, or name it where the model is loaded."
        )
        yield Finding("tokenizer", str(problem), advice)
    strategy = Strategy.parse("auto")
    is_native = strategy.is_native_for(found.version, deep_embed=found.deep_embed)
    runtime = "the native runtime" if is_native else "the rwkv package"
    yield Finding("strategy", f"'auto' is {str(strategy)!r}, by {runtime}")
    yield from _sizes(found, contents.tensors, strategy, is_native=is_native)


def _sizes(
    found: Checkpoint,
    tensors: Mapping[str, torch.Tensor],
    strategy: Strategy,
    *,
    is_native: bool,
) -> Iterator[Finding]:
    """Says how much memory weights and states take, and how many states there is room for."""
    from langchain_rwkv_state.engine import Limits
    from langchain_rwkv_state.runtime.cuda.sizing import CELLS_A_SLOT
    from langchain_rwkv_state.runtime.needed_memory import free_bytes, weights_bytes

    stage = strategy.stages[0]
    weights = weights_bytes(tensors, stage, is_native=is_native)
    state, free = found.layout.nbytes, free_bytes(stage)
    slot = state * (CELLS_A_SLOT if is_native and stage.on_cuda else 1)
    fit = max(0, free - weights) // slot
    yield Finding(
        "memory of weights", f"about {output.size(weights)}", figure=weights, unit="bytes"
    )
    yield Finding("memory of a state", output.size(state), figure=state, unit="bytes")
    slots = Limits.slots * slot
    each = f", {slot // state} states each" if slot > state else ""
    yield Finding("memory of slots", output.size(slots) + each, figure=slots, unit="bytes")
    of_free = f"in the {output.size(free)} that are free on {stage.device!r}, beside the weights"
    kind = stage.device.partition(":")[0]
    advice = "" if fit else f"Free memory, or take a smaller model or 8 bits ('{kind} int8')."
    yield Finding(
        "conversations",
        f"{fit:,} at once would fit {of_free}; slots={Limits.slots} is the default",
        advice,
        figure=fit,
        unit="states",
    )
    yield Finding("context", "unlimited: a state's size is the same, whatever it has read")


def trial(name: str) -> Iterator[Finding]:
    """Loads a model and decodes for a while, one token at a time; says how fast it was.

    Args:
        name: The model, as for `load_runtime`.
    """
    from langchain_rwkv_state.runtime import load_runtime, open_slots

    start = time.perf_counter()
    runtime = load_runtime(name)
    try:
        took = time.perf_counter() - start
        about = getattr(runtime, "about", Path(name).name)
        yield Finding("loads", f"in {took:.1f} s, by {about}", figure=took, unit="seconds")
        yield from slower_of(runtime)
        slots = open_slots(runtime, 1)
        slots.put(0, runtime.zero_state())
        token, count, begun = 0, -_WARM_UP_STEPS, 0.0
        while count <= 0 or time.perf_counter() - begun < TRIAL_SECONDS:
            if count == 0:
                begun = time.perf_counter()
            logits = slots.read([(0, [token])])
            token = int(logits.argmax())
            count += 1
        if not logits.isfinite().all():
            advice = "Its weights are broken, or too large for this strategy: download them again."
            yield Finding("answers", "no text: its logits hold NaN or infinity", advice)
        speed = count / (time.perf_counter() - begun)
        yield Finding(
            "speed",
            f"{speed:,.1f} tokens a second in one conversation, tried for {TRIAL_SECONDS:.0f} s",
            figure=speed,
            unit="tokens a second",
        )
    finally:
        runtime.close()
