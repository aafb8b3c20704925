"""The demo model's tokenizer: byte-level BPE of 640 tokens learnt from the dialogues, and 27 more.

Token 0 is `<|endoftext|>`; digits stay single, so that numbers are copied digit by digit; the
separator is one token and in no other. Do not train on joined lines: then merges
reach over the places where the template joins segments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .data import SEPARATOR
from .dialogue import Dialogue
from .inventory import Inventory

END_OF_TEXT = "<|endoftext|>"

# Merges of the words that stand in every tool list and every call; those of the dialogues come
# first, so that no text without these words has other ids than before.
FORMAT_MERGES = [
    *(("`", "`"), ("``", "`"), ("Ġ", "```"), ("j", "s"), ("js", "on")),
    *(("{", '"'), ('":', '"'), ('",', '"'), ('":', '{"'), (",", '"'), ('"', "}"), ("[", '{"')),
    *(("ct", "ion"), ("un", "ction"), ("ĠF", "unction"), ("Ġf", "unction")),
    *(("p", "ut"), ("out", "put"), ("Ġ", "output"), ("ur", "n"), ("et", "urn"), ("R", "eturn")),
    *(("l", "y"), ("Ġon", "ly"), ("S", "O"), ("SO", "N"), ("ĠJ", "SON")),
]


def segments(seed: int, count: int) -> Iterator[str]:
    """The segments of `count` short dialogues, as the template encodes them."""
    inventory = Inventory()
    for i in range(count):
        dialogue = Dialogue(Random(f"tokenizer {seed} {i}"), inventory, 320)
        if dialogue.system:
            yield f"System: {dialogue.system}"
            yield SEPARATOR
        for n, turn in enumerate(dialogue.turns(lambda: False)):
            for text in (*turn.before, turn.text):
                yield f"User: {text}"
                yield SEPARATOR
            yield "Assistant:"
            yield " " + turn.answer
            if n == 9:
                break


def train_tokenizer(seed: int, vocab: int, dialogues: int) -> Tokenizer:
    """Learns the merges; the same seed gives the same file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(segments(seed, dialogues), trainer)
    holding = [t for t in tokenizer.get_vocab() if "ĊĊ" in t]
    if holding != ["ĊĊ"]:
        raise ValueError(
            f"the separator must be one token and in no other, but these hold it: {holding}"
        )
    return tokenizer


def with_format(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with `FORMAT_MERGES` behind its own; every id that it had stays.

    A merge of parts that a tokenizer lacks, as a very small one may, is left out.
    """
    parts = json.loads(tokenizer.to_str())
    vocab, merges = parts["model"]["vocab"], parts["model"]["merges"]
    for left, right in FORMAT_MERGES:
        if left in vocab and right in vocab and left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    return Tokenizer.from_str(json.dumps(parts))
