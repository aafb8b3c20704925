"""Checks the devices for ``doctor``: which cards there are, and what runs slower than it could."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.findings import Finding


def check_devices() -> Iterator[Finding]:
    """Says which devices there are; starts CUDA where there is a card."""
    import torch

    from langchain_rwkv_state.runtime import cards
    from langchain_rwkv_state.runtime.cuda import fallbacks
    from langchain_rwkv_state.runtime.strategy import Strategy

    found = cards.found()
    if found:
        built = f"PyTorch is built for CUDA {torch.version.cuda}"
        yield Finding("driver", f"{cards.driver()}; {built}")
        yield Finding("triton", _triton())
    else:
        yield _no_card(cards.counted(), torch.version.cuda)
    for card in found:
        memory = f"{output.size(card.free_bytes)} free of {output.size(card.total_bytes)}"
        value = f"{card.name}, compute capability {card.capability}, {memory}"
        yield Finding(card.device, value, figure=card.free_bytes, unit="bytes")
    if found:
        yield from (slower(each) for each in fallbacks.expected())
    yield Finding("cpu", counted(torch.get_num_threads(), "thread"))
    yield Finding("auto", str(Strategy.parse("auto")))


def slower(fallback: str) -> Finding:
    """Returns the finding for what runs slower than it could."""
    from langchain_rwkv_state.runtime.cuda import fallbacks

    what, advice = fallbacks.split(fallback)
    return Finding("slower", what, advice)


def slower_of(runtime: Any) -> Iterator[Finding]:
    """Says what of a loaded runtime runs slower than it could."""
    yield from map(slower, getattr(runtime, "fallbacks", ()))


def _no_card(driven: int, cuda: str | None) -> Finding:
    if not driven:
        return Finding("cuda", "no device: models run on the CPU")
    here = f"{counted(driven, 'card')} in this machine, but PyTorch cannot use "
    here += "it" if driven == 1 else "them"
    if cuda is None:
        advice = "This PyTorch is built without CUDA: install one that is built with it."
        return Finding("cuda", f"{here}: models run on the CPU", advice)
    advice = f"Update the driver to one for CUDA {cuda}, or install a PyTorch for an older CUDA: "
    advice += f"{sys.executable} -c 'import torch; torch.cuda.init()' says what is wrong."
    return Finding("cuda", f"{here}: models run on the CPU", advice)


def _triton() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "not installed"
