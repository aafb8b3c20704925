"""Trains the demo model that `langchain_rwkv_state` ships on a CPU: from nothing, or further.

    python examples/train_demo_model.py --out build/demo            # hours on two cores
    python examples/train_demo_model.py --out build/demo --start-from build/old  # a smaller model
    python examples/train_demo_model.py --out /tmp/smoke --smoke    # seconds, learns nothing

A run that was cut off goes on from its last checkpoint when it is started again with the same
arguments; `--fresh` starts over. Do not change `--steps` of a half-done run: the
learning rate and the lengths of dialogues follow the share of the run that is over.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.demo_training.loop import Plan, train
from examples.demo_training.model import Shape


def main() -> None:
    """Reads the arguments and trains."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder to write to")
    parser.add_argument("--start-from", type=Path, help="folder of a model to make deeper")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=1, help="of weights and data")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--fresh", action="store_true", help="do not go on from a checkpoint")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.smoke:
        shape = Shape(vocab=384, layers=2, width=64, lora=(8, 8, 8, 8), ffn=128)
        plan = Plan(steps=5, seed=args.seed, shape=shape, tokens=512, dialogues=300)
    else:
        plan = Plan(steps=args.steps, seed=args.seed, start_from=args.start_from)
        if args.start_from:
            plan = replace(plan, rate=1.8e-3, flat=0.4, tokens=4608)
    train(plan, args.out, resume=not args.fresh)


if __name__ == "__main__":
    main()
