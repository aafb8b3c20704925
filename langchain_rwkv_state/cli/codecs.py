"""The command ``codecs``: shows what each codec would make of a state.

It stores nothing. What a codec does to memory is for ``rwkv-state recall --only codecs`` to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.options import (
    JsonOption,
    StoreOption,
    StrategyOption,
    TokenizerOption,
)
from langchain_rwkv_state.cli.states import PROBE, Source, model_of, state_of

if TYPE_CHECKING:
    from langchain_rwkv_state.state import CodecTrial, RWKVState


def codecs(
    source: Source,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The state's model, to ask what comes next after each."),
    ] = None,
    probe: Annotated[str, typer.Option(help="What the model reads from each.")] = PROBE,
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Try every codec on a state: bytes, time, and how far its numbers move.

    With --model also how far the next token's distribution moves, in nats.
    """
    if model is not None and not probe:
        raise typer.BadParameter("The model reads a text from the state: give one by --probe.")
    found = _trials(state_of(source, store), model, probe, strategy, tokenizer)
    if as_json:
        output.as_json({"source": source, "codecs": list(map(_as_json, found))})
        return
    head = ["BYTES", "OF TENSORS", "ENCODE", "DECODE", "NUMBERS MOVE"]
    rows = output.table("CODEC", *head, *["KL, NATS"] * (model is not None))
    for each in found:
        kl = [] if each.kl is None else [f"{each.kl:.2g}"]
        rows.add_row(
            each.codec,
            f"{each.nbytes:,}",
            f"{each.share:.3f}",
            f"{1e3 * each.encode_seconds:.2f} ms",
            f"{1e3 * each.decode_seconds:.2f} ms",
            f"{each.moved:.2g}",
            *kl,
        )
    output.out().print(rows)


def _as_json(trial: CodecTrial) -> dict[str, Any]:
    return {
        "codec": trial.codec,
        "bytes": trial.nbytes,
        "share": trial.share,
        "encode_seconds": trial.encode_seconds,
        "decode_seconds": trial.decode_seconds,
        "moved": output.number(trial.moved),
        "kl_nats": output.number(trial.kl),
    }


def _trials(
    state: RWKVState, model: str | None, probe: str, strategy: str, tokenizer: str | None
) -> tuple[CodecTrial, ...]:
    from langchain_rwkv_state.state import try_codecs

    if model is None:
        return try_codecs(state)
    with model_of(state, model, strategy, tokenizer) as loaded:
        return try_codecs(state, runtime=loaded.runtime, probe=loaded.tokenizer.encode(probe))
