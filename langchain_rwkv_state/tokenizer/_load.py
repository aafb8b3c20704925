"""Finds a model's tokenizer: by a name, a path, the file beside the model, or the model's size."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.tokenizer._json import JsonTokenizer
from langchain_rwkv_state.tokenizer._port import Tokenizer
from langchain_rwkv_state.tokenizer._world import WORLD_IDS, WorldTokenizer

_WORLD_NAMES = ("world", "rwkv_vocab_v20230424")  # the second is the `rwkv` package's
_WORLD_VOCAB = 65_536  # models pad the vocabulary to a power of two
_PILE_IDS, _PILE_VOCAB = 50_254, 50_432  # the 20B tokenizer: least size, and padded to 128


def load_tokenizer(
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    *,
    model_path: str | os.PathLike[str] | None,
    vocab_size: int,
) -> Tokenizer:
    """Finds the tokenizer of a model.

    Args:
        tokenizer: A tokenizer; ``"world"``; the path of a ``tokenizer.json``, of its folder, or of
            a vocabulary in World's format; or ``None`` for the ``tokenizer.json`` beside the
            model's file or in its folder, else what its size tells. A `Path` is always a path; a
            text that is also a tokenizer's name is the name, so write ``./world`` for a file.
        model_path: The model's file or folder.
        vocab_size: Number of the model's logits.

    Raises:
        ModelLoadError: None is found, or it has ids that the model does not know.
    """
    found = _find(tokenizer, model_path, vocab_size)
    if found.vocab_size > vocab_size:
        raise ModelLoadError(
            f"The tokenizer has {found.vocab_size} ids, the model only {vocab_size}: pass the "
            "tokenizer that the model was trained with (tokenizer=...)."
        )
    return found


def _find(
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    model_path: str | os.PathLike[str] | None,
    vocab_size: int,
) -> Tokenizer:
    if isinstance(tokenizer, str) and tokenizer.lower() in _WORLD_NAMES:
        return WorldTokenizer()
    if isinstance(tokenizer, str | os.PathLike):
        return _at(Path(tokenizer).expanduser())
    if tokenizer is not None:
        return tokenizer
    if model_path is not None:
        beside = tokenizer_beside(model_path)
        if beside.is_file():
            return JsonTokenizer(beside)
    if WORLD_IDS <= vocab_size <= _WORLD_VOCAB:
        return WorldTokenizer()
    if _PILE_IDS <= vocab_size <= _PILE_VOCAB:
        raise ModelLoadError(
            f"A model of {vocab_size} tokens needs the 20B tokenizer, and there is no "
            "tokenizer.json beside its file: pass tokenizer='path/to/20B_tokenizer.json'."
        )
    raise ModelLoadError(
        f"No tokenizer is known for a model of {vocab_size} tokens, and there is no "
        "tokenizer.json beside its file: pass tokenizer='path/to/tokenizer.json'."
    )


def tokenizer_beside(model_path: str | os.PathLike[str]) -> Path:
    """Returns where a model's ``tokenizer.json`` would be: in its folder, or beside its file."""
    path = Path(model_path)
    return path / "tokenizer.json" if path.is_dir() else path.with_name("tokenizer.json")


def _at(path: Path) -> Tokenizer:
    """Returns the tokenizer of a file or a folder; its content says which."""
    if path.is_dir():
        return JsonTokenizer(path / "tokenizer.json")
    try:
        with path.open("rb") as file:
            is_json = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"")
    except OSError:
        is_json = True  # which says what is wrong
    return JsonTokenizer(path) if is_json else WorldTokenizer(path)
