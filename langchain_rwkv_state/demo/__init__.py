"""The demo model: a trained RWKV-7 of 1.5 million parameters that remembers what it is told.

Three files and their paths, nothing else; `docs/demo_model.md` says what it knows and how it was
trained. It gives back facts, follows a manner of speech, calls tools and says that it is tiny about
anything else.
"""

from __future__ import annotations

from pathlib import Path

MODEL_PATH = Path(__file__).with_name("model.safetensors")
"""The weights, float16, under BlinkDL's tensor names."""

TOKENIZER_PATH = Path(__file__).with_name("tokenizer.json")
"""The tokenizer, in the format of the `tokenizers` library."""

WEIGHTS = "rwkv7-acb388823c59af8892f3db64eb319f36"
"""The first part of its fingerprint, by which a store's states are known to be its own."""

RECALL_PATH = Path(__file__).with_name("recall.json")
"""What the model recalled when it was last measured, by ``python -m benchmarks.retention``."""

__all__ = ["MODEL_PATH", "RECALL_PATH", "TOKENIZER_PATH", "WEIGHTS"]
