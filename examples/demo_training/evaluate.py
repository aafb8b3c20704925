"""Measures a demo model: free-running and greedy, on values and tools that training never drew.

The model answers every turn itself and lives with its own answers; a case is right when the last
answer is what was asked for, to the letter. Do not judge by teacher-forced loss:
there the model never meets its own slips.

    python -m examples.demo_training.evaluate --model build/demo --cases 300
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from random import Random

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from tokenizers import Tokenizer

from .cases import NEXT_TURN, Case, suite
from .data import END_OF_TEXT_ID, Encoder
from .model import RWKV7, LayerState, Shape

MOST_ANSWER_IDS = 80


def load(folder: Path) -> tuple[RWKV7, Tokenizer]:
    """The model of a folder with `model.safetensors` and `tokenizer.json`, computed in float32."""
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    vocab, width = tensors["emb.weight"].shape
    layers = 1 + max(int(k.split(".")[1]) for k in tensors if k.startswith("blocks."))
    lora = tuple(tensors[f"blocks.1.att.{x}1"].shape[1] for x in "wavg")
    shape = Shape(
        vocab=vocab,
        layers=layers,
        width=width,
        head=tensors["blocks.0.att.r_k"].shape[1],
        lora=(lora[0], lora[1], lora[2], lora[3]),
        ffn=tensors["blocks.0.ffn.key.weight"].shape[0],
    )
    model = RWKV7(shape)
    model.load_state_dict(tensors)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


class Conversations:
    """Many conversations with one model, in step; ragged rows are padded and leave no trace."""

    def __init__(self, model: RWKV7, tokenizer: Tokenizer, rows: int) -> None:
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.encoder = Encoder(tokenizer)
        self.state: list[LayerState] = model.zero_state(rows)

    @torch.no_grad()
    def read(self, rows: list[list[int]]) -> torch.Tensor:
        """Feeds each row its ids; gives the logits after the last of each."""
        lengths = torch.tensor([len(r) for r in rows])
        ids = torch.zeros(self.rows, int(lengths.max()), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        x, self.state = self.model.hidden(ids, self.state, lengths)
        return self.model.logits(x[torch.arange(self.rows), (lengths - 1).clamp(min=0)])

    def answer(self, rows: list[list[int]]) -> list[str]:
        """Feeds the ids, then lets every row answer until its separator."""
        logits = self.read(rows)
        end = self.encoder.separator[0]
        out: list[list[int]] = [[] for _ in range(self.rows)]
        open_rows = [True] * self.rows
        for _ in range(MOST_ANSWER_IDS):
            chosen = logits.argmax(-1).tolist()
            step: list[list[int]] = []
            for i, token in enumerate(chosen):
                open_rows[i] = open_rows[i] and token not in (end, END_OF_TEXT_ID)
                step.append([token] if open_rows[i] else [])
                out[i] += step[-1]
            if not any(open_rows):
                break
            fresh = self.read(step)
            logits = torch.where(torch.tensor(open_rows)[:, None], fresh, logits)
        return [self.tokenizer.decode(o).removeprefix(" ") for o in out]


def run(model: RWKV7, tokenizer: Tokenizer, cases: list[Case]) -> float:
    """Plays the cases, all of one length, and gives the share that ended right."""
    talk = Conversations(model, tokenizer, len(cases))
    enc = talk.encoder
    opening = [
        [END_OF_TEXT_ID, *(enc.prompt("System", c.system, True) if c.system else [])] for c in cases
    ]
    for turn in range(len(cases[0].turns)):
        rows = []
        for i, case in enumerate(cases):
            first = turn == 0 and not case.system
            before: list[int] = []
            *earlier, text = case.turns[turn].split(NEXT_TURN)
            for said in earlier:
                before += enc.prompt("User", said, first)
            before += enc.question("User", text, first)
            rows.append((opening[i] if turn == 0 else []) + before)
        for case, answer in zip(cases, talk.answer(rows), strict=True):
            case.answers.append(answer)
    return sum(c.right(c.answers[-1]) for c in cases) / len(cases)


def evaluate(
    model: RWKV7,
    tokenizer: Tokenizer,
    cases: int,
    *,
    seed: int = 7,
    only: str = "",
    rows: int = 150,
) -> dict[str, tuple[float, list[Case]]]:
    """Runs the suite; gives for each measure the share that is right, and the other cases."""
    out = {}
    for name, make in suite().items():
        if only and only not in name:
            continue
        made = [make(Random(f"{seed} {name} {i}")) for i in range(cases)]
        right = 0.0
        for start in range(0, cases, rows):
            some = made[start : start + rows]
            right += run(model, tokenizer, some) * len(some)
        out[name] = (right / cases, [c for c in made if not c.right(c.answers[-1])])
    return out


def main() -> None:
    """Reads the arguments, measures and shows a table."""
    parser = argparse.ArgumentParser(description="Measure a demo model.")
    parser.add_argument("--model", type=Path, default=Path("build/demo"))
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--only", default="", help="part of a measure's name")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--misses", type=int, default=0, help="how many misses of each to show")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    model, tokenizer = load(args.model)
    table = Table("measure", "cases", "right")
    results = evaluate(model, tokenizer, args.cases, seed=args.seed, only=args.only)
    for name, (share, misses) in results.items():
        table.add_row(name, str(args.cases), f"{share:.1%}")
        for case in misses[: args.misses]:
            told = " / ".join(case.turns)
            console.print(f"[{name}] {case.system} || {told} => {case.answers}", markup=False)
    console.print(table)


if __name__ == "__main__":
    main()
