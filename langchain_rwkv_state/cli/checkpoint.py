"""Opens a checkpoint for the commands on models, and reads the texts that are given to them.

Nothing is loaded into a runtime here. A text's ids come from the tokenizer beside the model's file,
or from the one that the size of its vocabulary names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_rwkv_state._text import model_shape
from langchain_rwkv_state.cli.streams import read_text

if TYPE_CHECKING:
    import torch

    from langchain_rwkv_state.runtime.checkpoint import Checkpoint

TextOption = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", exists=True, dir_okay=False, help="A text to read."),
]
WordsOption = Annotated[
    str | None, typer.Option("--words", metavar="TEXT", help="The text itself, instead.")
]


@dataclass(frozen=True)
class Opened:
    """A checkpoint that was looked into.

    Attributes:
        path: Its file.
        tensors: Views of it.
        checkpoint: What they are.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    checkpoint: Checkpoint

    @classmethod
    def of(cls, model: str) -> Opened:
        """Maps a model's file, downloaded if need be.

        Raises:
            ModelLoadError: It cannot be found or read.
        """
        from langchain_rwkv_state.runtime import locate
        from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_tensors

        path = locate(model)
        tensors = read_tensors(path, mapped=True)
        return cls(path, tensors, Checkpoint.of(tensors, path))

    @property
    def is_static(self) -> bool:
        """Whether no text changes its decays."""
        return self.checkpoint.version[0] in "45"

    @property
    def about(self) -> str:
        """The model in a word."""
        found = self.checkpoint
        return model_shape(found.version, found.n_layer, found.n_embd)

    def ids(self, text: str, tokenizer: str | None) -> list[int]:
        """Returns a text's ids."""
        from langchain_rwkv_state.tokenizer import load_tokenizer

        size = self.checkpoint.vocab_size
        return load_tokenizer(tokenizer, model_path=self.path, vocab_size=size).encode(text)


def said(text: Path | None, words: str | None) -> str | None:
    """Returns the text that was given in a file or in words, ``None`` for neither.

    Raises:
        typer.BadParameter: It was given twice, or is empty.
    """
    if text is not None and words is not None:
        raise typer.BadParameter("Give a text in a file or with --words, not both.")
    given = words if text is None else read_text(text)
    if given == "":
        raise typer.BadParameter("The text is empty.")
    return given


def short(number: float) -> str:
    """Returns a half-life, or how many times larger something is, for a table.

    Example:
        >>> short(2066.3), short(0.7661), short(math.inf)
        ('2,066', '0.766', 'for ever')
    """
    if math.isinf(number):
        return "for ever"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
