"""The command ``size``: says what a service of a model takes, before it is there.

It reads the shapes in a checkpoint and nothing else: the machine it runs on does not matter, unless
``auto`` is to choose between a card and the CPU. What it does not know stands below its table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.checkpoint import Opened
from langchain_rwkv_state.cli.options import JsonOption, ModelOption, StrategyOption
from langchain_rwkv_state.state.codec_names import CodecName

if TYPE_CHECKING:
    from langchain_rwkv_state.toolbox.sizing import ServiceSize

_SLOTS = 64  # as of a model that is not told otherwise


def size(
    model: ModelOption = "demo",
    slots: Annotated[int, typer.Option(min=1, help="Conversations computed at once.")] = _SLOTS,
    sessions: Annotated[int, typer.Option(min=0, help="Conversations that are kept.")] = 1_000,
    history: Annotated[
        int, typer.Option(min=0, help="States kept behind each one's head, as of the store.")
    ] = 1,
    codec: Annotated[CodecName, typer.Option(help="How the store writes states.")] = "exact",
    strategy: StrategyOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what serving a model takes: weights, slots, and sessions on a disk or in Redis.

    Only the shapes in the checkpoint are looked at.
    """
    from langchain_rwkv_state.runtime.needed_memory import weights_bytes
    from langchain_rwkv_state.runtime.strategy import DTYPES, Strategy
    from langchain_rwkv_state.toolbox.sizing import size_of

    opened = Opened.of(model)
    parsed = Strategy.parse(strategy)
    checkpoint, stage = opened.checkpoint, parsed.stages[0]
    is_native = parsed.is_native_for(checkpoint.version, deep_embed=checkpoint.deep_embed)
    found = size_of(
        checkpoint.layout,
        weights_bytes(opened.tensors, stage, is_native=is_native),
        slots=slots,
        sessions=sessions,
        history=history,
        codec=codec,
        on_card=is_native and stage.on_cuda,
        state_dtype=DTYPES[stage.state_dtype],
    )
    if as_json:
        output.as_json(
            {
                "model": model,
                "version": checkpoint.layout.version,
                "layers": checkpoint.n_layer,
                "width": checkpoint.n_embd,
                "strategy": str(parsed),
                "weights_bytes": found.weights_bytes,
                "state_bytes": found.state_bytes,
                "slots": found.slots,
                "slots_bytes": found.slots_bytes,
                "staged_bytes": found.staged_bytes,
                "sessions": found.sessions,
                "states_a_session": found.states_a_session,
                "codec": found.codec,
                "stored_state_bytes": found.stored_state_bytes,
                "stored_bytes": found.stored_bytes,
                "redis_state_bytes": found.redis_state_bytes,
                "redis_bytes": found.redis_bytes,
            }
        )
        return
    console = output.out()
    console.print(Text(f"{opened.about}, {parsed}:"), soft_wrap=True)
    console.print()
    table = output.table("WHAT", "BYTES", "")
    for what, nbytes in _rows(found):
        table.add_row(what, f"{nbytes:,}", output.size(nbytes))
    console.print(table)
    console.print()
    console.print(
        Text(
            "Beside these, each process has Python and PyTorch, and a prefix cache: 5 % of the "
            "memory that is free, from 32 MB to 1 GB."
        ),
        soft_wrap=True,
    )


def _rows(found: ServiceSize) -> list[tuple[str, int]]:
    """Returns what takes room, and how much."""
    kept = f"{found.sessions:,} sessions of {counted(found.states_a_session, 'state')}"
    return [
        ("weights, a process", found.weights_bytes),
        ("a state", found.state_bytes),
        (f"{counted(found.slots, 'slot')}, a process", found.slots_bytes),
        ("staged answers, a process, at most", found.staged_bytes),
        (f"a stored state, {found.codec}", found.stored_state_bytes),
        (f"{kept}, on a disk", found.stored_bytes),
        (f"{kept}, in Redis", found.redis_bytes),
    ]
