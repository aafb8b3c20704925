"""Writes the random models that benchmarks time: right in shape and speed, meaningless in words.

Nothing here is trained. The usual one is as large as RWKV-7 0.1B: below some 100 MB of weights the
caches of the processor flatter every figure.

    python -m benchmarks.models PATH [--quick] [--speaking] [--fp32-too PATH]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch

from langchain_rwkv_state.tokenizer import WorldTokenizer
from tests.helpers.checkpoints import write_checkpoint

ROOT = Path(__file__).parent.parent


def write_12x768(path: Path | str, *, vocab: int = 65536) -> Path:
    """Writes a random RWKV-7 as large as 0.1B (12 layers, width 768, heads of 64), in fp16.

    Args:
        path: A ``.pth`` or ``.safetensors`` file; kept where it is there already.
        vocab: Size of the vocabulary.

    Returns:
        The path.
    """
    target = Path(path)
    if not target.exists():
        write_checkpoint(target, 7, n_layer=12, n_embd=768, vocab=vocab, dtype=torch.float16)
    return target


def write_2x128(path: Path | str) -> Path:
    """Writes a small one, to see that a benchmark runs."""
    return write_checkpoint(path, 7, n_layer=2, n_embd=128, vocab=65536, dtype=torch.float16)


def make_speak(path: Path) -> None:
    """Changes a ``.pth`` so that it answers in words.

    The ids that an untrained model samples are seldom those that the tokenizer gives for their
    text, so that nearly every answer would be read twice, which a trained model's hardly ever is.
    So the rows of the head are zero but for words with a space before them: whatever sequence of
    these is sampled, it is the tokenizer's own. Shapes, and so the work, stay the same.
    """
    tensors = torch.load(path, weights_only=True)
    tokenizer = WorldTokenizer()
    word = re.compile(rb" [a-z]{3,}")
    spoken = torch.tensor(
        [bool(word.fullmatch(tokenizer.decode_bytes([i]))) for i in range(1, tokenizer.vocab_size)]
    )
    head = tensors["head.weight"]
    head[0] = 0
    head[1 : 1 + len(spoken)][~spoken] = 0
    head[1 + len(spoken) :] = 0
    torch.save(tensors, path)


def write_apart(
    path: Path, *, quick: bool = False, speaking: bool = False, fp32_too: Path | None = None
) -> Path:
    """Writes a ``.pth`` in another process, a small one in this.

    A thread that has computed keeps PyTorch's threads from the one that runs the model.

    Args:
        path: The file, in fp16.
        quick: A small model, instead of one of 12x768.
        speaking: Whether it answers in words.
        fp32_too: A second file for the same numbers in fp32.

    Returns:
        The path.
    """
    if quick:  # nobody looks at its times
        return _write(path, quick=True, speaking=speaking, fp32_too=fp32_too)
    command = [sys.executable, "-m", "benchmarks.models", str(path)]
    command += ["--speaking"] * speaking
    command += ["--fp32-too", str(fp32_too)] if fp32_too else []
    subprocess.run(command, cwd=ROOT, check=True)
    return path


def _write(path: Path, *, quick: bool, speaking: bool, fp32_too: Path | None) -> Path:
    (write_2x128 if quick else write_12x768)(path)
    if speaking:
        make_speak(path)
    if fp32_too:
        tensors = torch.load(path, weights_only=True)
        torch.save({name: tensor.float() for name, tensor in tensors.items()}, fp32_too)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a random RWKV-7.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--quick", action="store_true", help="2x128 instead of 12x768")
    parser.add_argument("--speaking", action="store_true", help="one that answers in words")
    parser.add_argument("--fp32-too", type=Path, help="the same numbers in fp32, in another file")
    arguments = parser.parse_args()
    _write(
        arguments.path,
        quick=arguments.quick,
        speaking=arguments.speaking,
        fp32_too=arguments.fp32_too,
    )


if __name__ == "__main__":
    main()
