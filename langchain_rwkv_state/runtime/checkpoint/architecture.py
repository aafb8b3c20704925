"""Finds out what a checkpoint is, from the names and shapes of its tensors alone.

The version, the sizes and the fingerprint of a model come from here; the name of its file is never
asked. Nothing is loaded into a model here. A tensor that no one knows is refused: the `rwkv`
package ignores it, and computes another model than the one that was trained.

Glossary: V vocabulary, D embedding width, A time-mix width, F channel-mix width, H heads,
N head size, ``*`` any size (the ranks of the LoRAs).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint.where import shard_hint
from langchain_rwkv_state.state import StateLayout, Version

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_SAMPLE_BYTES = 1024
_SAMPLES = 4  # from the start, one third, two thirds and the end of each tensor
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_FOREIGN = re.compile(r"(^|\.)(model|rwkv|transformer)\.|\.attention\.|\.feed_forward\.|embeddings")

_NORM = ("weight", "bias")
_MATRICES = {"key": "AD", "value": "AD", "receptance": "AD", "output": "DA"}
_GATED = {**_MATRICES, "gate": "AD"}


def _weights(matrices: Mapping[str, str]) -> dict[str, str]:
    return {f"{name}.weight": shape for name, shape in matrices.items()}


def _att(matrices: Mapping[str, str], **vectors: str) -> dict[str, str]:
    """Returns the shapes of a time-mix; ``mix_rkv="D"`` stands for one tensor a letter."""
    shapes = {f"att.{name}": shape for name, shape in _weights(matrices).items()}
    for name, shape in vectors.items():
        stem, _, letters = name.rpartition("__")
        names = [f"{stem}_{letter}" for letter in letters] if stem else [name]
        shapes |= {f"att.{each}": shape for each in names}
    return shapes


_LN_X = {f"att.ln_x.{part}": "A" for part in _NORM}
_FFN = {"ffn.key.weight": "FD", "ffn.value.weight": "DF"}
_FFN_4 = {
    **_FFN,
    "ffn.receptance.weight": "DD",
    "ffn.time_mix_k": "D",
    "ffn.time_mix_r": "D",
}

_SHAPES: dict[str, dict[str, str]] = {
    "4": {
        **_att(_MATRICES, time_mix__kvr="D", time_decay="A", time_first="A"),
        **_FFN_4,
    },
    "5": {
        **_att(_MATRICES, time_mix__kvr="D", time_decay="H", time_first="H"),
        **_LN_X,
        **_FFN_4,
    },
    "5.1": {
        **_att(_GATED, time_mix__kvrg="D", time_decay="H", time_first="H"),
        **_LN_X,
        **_FFN_4,
    },
    "5.2": {
        **_att(_GATED, time_mix__kvrg="D", time_decay="HN", time_first="HN"),
        **_LN_X,
        **_FFN_4,
    },
    "6": {
        **_att(_GATED, time_maa__xwkvrg="D", time_maa_w1="D*", time_maa_w2="**D"),
        **_att({}, time_decay="A", time_decay_w1="D*", time_decay_w2="*A", time_first="HN"),
        **_LN_X,
        **_FFN,
        "ffn.receptance.weight": "DD",
        "ffn.time_maa_k": "D",
        "ffn.time_maa_r": "D",
    },
    "7": {
        **_att(_MATRICES, x__rwkvag="D", w0="D", a0="D", v0="D", k_k="D", k_a="D", r_k="HN"),
        **_att({}, w1="D*", a1="D*", v1="D*", g1="D*", w2="*D", a2="*D", v2="*D", g2="*D"),
        **_LN_X,
        **_FFN,
        "ffn.x_k": "D",
    },
}
_DEEP_EMBED = {
    "ffn.s_emb.weight": "V*",
    "ffn.s_emb_x.weight": "*D",
    "ffn.s0": "F",
    "ffn.s1": "D*",
    "ffn.s2": "*F",
}
_UNUSED_7 = {f"blocks.0.att.v{n}" for n in range(3)}  # and left out by some
_MARKS_7 = {"r_k", "k_k", "k_a", "w0", "a0", *(f"x_{letter}" for letter in "rwkvag")}


@dataclass(frozen=True)
class Checkpoint:
    """The architecture and identity of one checkpoint.

    Attributes:
        version: ``4``, ``5``, ``5.1``, ``5.2``, ``6`` or ``7``.
        n_layer: Number of layers.
        n_embd: Embedding width, D.
        n_att: Time-mix width, A.
        n_head: Number of heads, H (1 for RWKV-4).
        vocab_size: Size of the vocabulary, V.
        deep_embed: Whether it is an RWKV-7 with DeepEmbed.
        tuned_state: Whether it brings start states of its own.
        weights: The first part of the model's fingerprint.
    """

    version: str
    n_layer: int
    n_embd: int
    n_att: int
    n_head: int
    vocab_size: int
    deep_embed: bool
    tuned_state: bool
    weights: str

    @property
    def head_size(self) -> int:
        """Size of a head, N (A for RWKV-4)."""
        return self.n_att // self.n_head

    @property
    def layout(self) -> StateLayout:
        """The layout of its states, where they are kept in fp32 throughout."""
        version, dtypes = cast("Version", int(self.version[0])), ("fp32",) * self.n_layer
        return StateLayout(version, self.n_layer, self.n_embd, self.n_head, self.head_size, dtypes)

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], path: Path) -> Checkpoint:
        """Reads names and shapes.

        Args:
            tensors: Tensors by name.
            path: Where they come from, for messages.

        Raises:
            ModelLoadError: They are not, or not wholly, an RWKV model that the `rwkv` package runs.
        """
        version = _version(tensors, path)
        sizes = _sizes(tensors, version, path)
        n_layer = 1 + max(int(match[1]) for match in map(_BLOCK.match, tensors) if match)
        deep_embed = version == "7" and "blocks.0.ffn.s_emb.weight" in tensors
        tuned_state = version[0] in "56" and "blocks.0.att.time_state" in tensors
        block = dict(_SHAPES[version])
        if deep_embed:
            block |= _DEEP_EMBED
        if tuned_state:
            block["att.time_state"] = "HNN"
        expected = dict(_expected(block, n_layer))
        _check(tensors, expected, sizes, path, optional=version == "7")
        return cls(
            version=version,
            n_layer=n_layer,
            n_embd=sizes["D"],
            n_att=sizes["A"],
            n_head=sizes["H"],
            vocab_size=sizes["V"],
            deep_embed=deep_embed,
            tuned_state=tuned_state,
            weights=f"rwkv{version}-{_digest(tensors)}",
        )

    def changed(self, tensors: Mapping[str, torch.Tensor], name: str) -> Checkpoint:
        """Returns the same architecture with other numbers, under an identity of its own.

        Args:
            tensors: All tensors, the changed ones among them.
            name: Of the change, without slashes.
        """
        return replace(self, weights=f"rwkv{self.version}-{_digest(tensors)}+{name}")


def in_loading_order(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors in an order in which the `rwkv` package finds version and heads.

    It guesses while it walks over the names: a decay that comes before the group norm of its own
    layer tells it nothing, so that it fails on one layer in BlinkDL's order.
    """
    marks = ("ln_x", "gate.weight", "time_maa")
    return dict(sorted(tensors.items(), key=lambda item: not any(m in item[0] for m in marks)))


def _version(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    # All layers are looked at: in a shard the first may lack what tells the versions apart.
    every = [match for match in map(_BLOCK.fullmatch, tensors) if match]
    att = {m[2].removeprefix("att.") for m in every if m[2].startswith("att.")}
    if not att or not every:
        some = next(iter(tensors))
        hint = (
            "its names are those of another format, such as a Hugging Face model of another kind: "
            "use an RWKV-7 in fla's names, or a checkpoint in BlinkDL's format"
            if any(_FOREIGN.search(name) for name in tensors)
            else "it should hold 'emb.weight', 'head.weight' and 'blocks.0.att...'"
        )
        raise ModelLoadError(
            f"{path} is not an RWKV checkpoint (it holds {some!r}): {hint}.{_hint(tensors, path)}"
        )
    if att & _MARKS_7:
        return "7"
    if any(name.startswith("time_maa") for name in att):
        return "6"
    if "ln_x.weight" not in att:
        return "4"
    if "gate.weight" not in att:
        return "5"
    decay = tensors.get("blocks.0.att.time_decay")
    return "5.2" if decay is not None and decay.ndim > 1 and decay.shape[1] > 1 else "5.1"


def _hint(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """Returns what to do where tensors lack: nothing of use unless some are an RWKV's."""
    known = any(name in ("emb.weight", "head.weight") or _BLOCK.match(name) for name in tensors)
    return shard_hint(path) if known else ""


def _sizes(tensors: Mapping[str, torch.Tensor], version: str, path: Path) -> dict[str, int]:
    """Returns the model's sizes by letter."""
    try:
        vocab, width = tensors["emb.weight"].shape
        att = tensors["blocks.0.att.key.weight"].shape[0]
        ffn = tensors["blocks.0.ffn.key.weight"].shape[0]
        heads = 1 if version == "4" else _first_with_heads(tensors, version).shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ModelLoadError(
            f"{path} is not a whole RWKV-{version} checkpoint: {error} is missing or misshapen."
            f"{shard_hint(path)}"
        ) from error
    if att % heads or (version != "4" and att != width):
        raise ModelLoadError(
            f"{path}: a time-mix of width {att} with {heads} heads in a model of width {width} is "
            f"not an RWKV-{version} that the rwkv package runs."
        )
    return {"V": vocab, "D": width, "A": att, "F": ffn, "H": heads, "N": att // heads}


def _first_with_heads(tensors: Mapping[str, torch.Tensor], version: str) -> torch.Tensor:
    """Returns a tensor of the first layer whose first dimension is the heads."""
    name = {"7": "r_k", "6": "time_faaaa"}.get(version, "time_decay")
    if version == "6" and "blocks.0.att.time_first" in tensors:
        name = "time_first"
    return tensors[f"blocks.0.att.{name}"]


def _expected(block: Mapping[str, str], n_layer: int) -> Iterator[tuple[str, str]]:
    """Yields every tensor of a model with its shape in letters."""
    yield from {"emb.weight": "VD", "head.weight": "VD"}.items()
    norms = ["ln_out", "blocks.0.ln0"]
    norms += [f"blocks.{layer}.{norm}" for layer in range(n_layer) for norm in ("ln1", "ln2")]
    yield from ((f"{norm}.{part}", "D") for norm in norms for part in _NORM)
    for layer in range(n_layer):
        yield from ((f"blocks.{layer}.{name}", shape) for name, shape in block.items())


def _check(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, str],
    sizes: Mapping[str, int],
    path: Path,
    *,
    optional: bool,
) -> None:
    # From 5.1 on `time_first` is stored as it is used, under the name `time_faaaa`.
    known = {name.replace("time_faaaa", "time_first"): name for name in tensors}
    spare = _UNUSED_7 if optional else set()
    for name, letters in expected.items():
        if name in spare:
            continue
        if name not in known:
            raise ModelLoadError(
                f"{path} is not a whole checkpoint: it lacks {name!r}.{shard_hint(path)}"
            )
        shape = tensors[known[name]].shape
        wanted = [sizes.get(letter, 0) for letter in letters]
        if not _fits([n for n in shape if n != 1], [n for n in wanted if n != 1]):
            raise ModelLoadError(
                f"{path} is damaged or of an unknown kind: {known[name]!r} has the shape "
                f"{list(shape)} where {wanted} was expected (0 stands for any size)."
            )
    for name, tensor in tensors.items():
        if name.replace("time_faaaa", "time_first") not in expected:
            raise ModelLoadError(
                f"{path} holds {name!r}, which no RWKV of its version has: it is a variant that "
                "the rwkv package would run wrongly."
            )
        if tensor.dtype not in _FLOATS:
            raise ModelLoadError(
                f"{path} holds {name!r} in {tensor.dtype}: weights must be in float32, float16 or "
                "bfloat16, so use a checkpoint that is not quantised, or a GGUF file."
            )


def _fits(shape: list[int], wanted: list[int]) -> bool:
    return len(shape) == len(wanted) and all(
        want in (0, size) for size, want in zip(shape, wanted, strict=True)
    )


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns 32 hex digits over names, shapes, dtypes and samples: some 4 kB a tensor.

    Of ``time_decay`` every byte counts; of what is never used, none, since some formats leave it
    out, and the model is the same.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors.keys() - _UNUSED_7):
        tensor = tensors[name]
        digest.update(f"{name}|{list(tensor.shape)}|{tensor.dtype}|".encode())
        flat = tensor.reshape(-1)
        if name.endswith(".time_decay") and flat.nbytes > _SAMPLES * _SAMPLE_BYTES:
            # A clamp may change one number in it, which the samples of a wide model may not hold.
            digest.update(flat.contiguous().view(torch.uint8).numpy().tobytes())
            continue
        size = _SAMPLE_BYTES // tensor.element_size()
        span = max(flat.numel() - size, 0)
        for part in range(_SAMPLES):
            start = span * part // (_SAMPLES - 1)
            sample = flat[start : start + size].contiguous()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
