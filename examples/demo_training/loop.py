"""The training loop: curriculum, optimiser, checkpoints and the files that the package ships.

It decides how long dialogues are at which moment, and nothing about what is said in them. Do not
train on short dialogues only: a state recalls no farther than training asked it to.
"""

from __future__ import annotations

import ctypes
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .data import Encoder, Example, example
from .grow import grown
from .inventory import Inventory
from .model import RWKV7, Shape
from .tokenizer import train_tokenizer, with_format

OTHER_WEIGHT = 0.02  # of everything that is not an answer
OTHER_ONE_IN = 4  # of those tokens are looked at, with so much more weight


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        steps: Number of optimiser steps.
        seed: Of the weights and of the data.
        shape: The model's sizes.
        tokens: Tokens in a step, about.
        rate: The learning rate after warm-up.
        warm_up: Steps of warm-up.
        flat: The share of the run at full rate; then it falls in a line.
        floor: The share of the rate that is left at the end.
        save_every: Steps from checkpoint to checkpoint.
        dialogues: How many dialogues the tokenizer is learnt from.
        start_from: A folder with an earlier model and its tokenizer to begin with.
    """

    steps: int
    seed: int = 1
    shape: Shape = field(default_factory=Shape)
    tokens: int = 7168
    rate: float = 2e-3
    warm_up: int = 50
    flat: float = 0.35
    floor: float = 0.03
    save_every: int = 50
    dialogues: int = 12_000
    start_from: Path | None = None


# By the share of the run that is over: the lengths of dialogues, in tokens, and their shares.
# The same for a model that knows dialogues already: first what is new, then far back again too.
GOING_ON: list[tuple[float, dict[int, float]]] = [
    (0.62, {208: 0.3, 288: 0.4, 416: 0.2, 1088: 0.1}),
    (1.01, {208: 0.12, 288: 0.25, 416: 0.2, 1088: 0.43}),
]
CURRICULUM: list[tuple[float, dict[int, float]]] = [
    (0.06, {112: 1.0}),
    (0.16, {112: 0.3, 224: 0.7}),
    (0.30, {160: 0.2, 256: 0.4, 416: 0.4}),
    (0.45, {224: 0.3, 416: 0.4, 640: 0.3}),
    (0.62, {224: 0.25, 448: 0.3, 736: 0.45}),
    (1.01, {224: 0.2, 448: 0.3, 1088: 0.5}),
]


def dialogue_length(rng: Random, progress: float, started: bool = False) -> int:
    """The length of the dialogues of one step; `started` from a model that was trained before."""
    for until, lengths in GOING_ON if started else CURRICULUM:
        if progress < until:
            return rng.choices(list(lengths), list(lengths.values()))[0]
    raise ValueError(f"progress must be at most 1, not {progress}")


def learning_rate(plan: Plan, step: int) -> float:
    """Warm-up, a flat part, then a line down to the floor."""
    progress = step / plan.steps
    falling = max(0.0, (progress - plan.flat) / (1 - plan.flat))
    return plan.rate * min(1.0, (step + 1) / plan.warm_up) * (1 - (1 - plan.floor) * falling)


def batch(examples: list[Example], rng: Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pads dialogues into ids, and picks what the loss looks at.

    Returns:
        Ids (B, T), and for the tokens in the loss: position in the flattened ids, target, weight.
    """
    width = max(len(e.ids) for e in examples) - 1
    width += -width % 16
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    where, targets, weights = [], [], []
    for row, e in enumerate(examples):
        n = len(e.ids) - 1
        ids[row, :n] = torch.tensor(e.ids[:-1])
        for i in range(n):
            if e.is_answer[i + 1]:
                weights.append(e.weights[i + 1])
            elif rng.random() < 1 / OTHER_ONE_IN:
                weights.append(OTHER_WEIGHT * OTHER_ONE_IN)
            else:
                continue
            where.append(row * width + i)
            targets.append(e.ids[i + 1])
    return ids, torch.tensor(where), torch.tensor(targets), torch.tensor(weights)


def keep_memory() -> None:
    """Asks the C library to keep freed memory, else every step pays for zeroed pages again."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-8, 1)  # M_ARENA_MAX
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-2, 2**28)  # M_TOP_PAD
    except (OSError, AttributeError):  # another C library: slower, no less right
        return


def export(model: RWKV7, path: Path) -> None:
    """Writes the weights in float16 under BlinkDL's names."""
    tensors = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(path)


def optimiser(model: RWKV7) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    matrices = [p for n, p in model.named_parameters() if n.endswith(".weight") and p.dim() == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, fused=True)


def train(plan: Plan, out: Path, *, resume: bool = True, console: Console | None = None) -> RWKV7:
    """Trains a model and writes `tokenizer.json`, `model.safetensors` and a checkpoint to `out`.

    Args:
        plan: The run.
        out: The folder; made where it is not there.
        resume: Whether to go on from the checkpoint that `out` may hold.
        console: Where progress is shown.

    Returns:
        The trained model.
    """
    console = console or Console()
    keep_memory()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, tokenizer_path = out / "checkpoint.pt", out / "tokenizer.json"
    going_on = resume and checkpoint.exists() and tokenizer_path.exists()
    if going_on:
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
    else:
        if plan.start_from:
            tokenizer = Tokenizer.from_file(str(plan.start_from / "tokenizer.json"))
        else:
            tokenizer = train_tokenizer(plan.seed, plan.shape.vocab, plan.dialogues)
        tokenizer = with_format(tokenizer)
        tokenizer.save(str(tokenizer_path))
    encoder, inventory = Encoder(tokenizer), Inventory()
    torch.manual_seed(plan.seed)
    shape = replace(plan.shape, vocab=tokenizer.get_vocab_size())
    if plan.start_from and not going_on:
        model = grown(plan.start_from / "model.safetensors", shape)
    else:
        model = RWKV7(shape)
    adam = optimiser(model)
    start = 0
    if going_on:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["optimiser"])
        start = int(saved["step"])
        console.log(f"going on from step {start}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    began, seen = time.monotonic(), [0.0, 0.0, 0.0]
    with Progress(*columns, console=console) as progress, (out / "log.jsonl").open("a") as log:
        task = progress.add_task("training", total=plan.steps, completed=start)
        for step in range(start, plan.steps):
            rng = Random(f"{plan.seed} {step}")
            length = dialogue_length(rng, step / plan.steps, plan.start_from is not None)
            examples = [
                example(rng, inventory, encoder, length)
                for _ in range(max(1, plan.tokens // length))
            ]
            ids, where, targets, weights = batch(examples, rng)
            for group in adam.param_groups:
                group["lr"] = learning_rate(plan, step)
            x, _ = model.hidden(ids, model.zero_state(len(examples)))
            logits = model.logits(x.reshape(-1, plan.shape.width)[where])
            losses = functional.cross_entropy(logits, targets, reduction="none")
            answers = weights >= 1.0
            loss = (losses * weights).sum() / answers.sum()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
            right = (logits.detach()[answers].argmax(-1) == targets[answers]).float().mean().item()
            seen = [seen[0] + loss.item(), seen[1] + right, seen[2] + 1]
            progress.update(task, advance=1, description=f"loss {loss.item():.3f}")
            if (step + 1) % 25 == 0 or step + 1 == plan.steps:
                line = {
                    "step": step + 1,
                    "loss": round(seen[0] / seen[2], 4),
                    "tokens right": round(seen[1] / seen[2], 4),
                    "length": length,
                    "minutes": round((time.monotonic() - began) / 60, 2),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
                seen = [0.0, 0.0, 0.0]
            if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
                temporary = checkpoint.with_suffix(".tmp")
                state = {
                    "model": model.state_dict(),
                    "optimiser": adam.state_dict(),
                    "step": step + 1,
                }
                torch.save(state, temporary)
                temporary.replace(checkpoint)
                export(model, out / "model.safetensors")
    return model
