"""Writes an RWKV-6 or 7 of BlinkDL's names as a GGUF file, so that llama.cpp runs the same weights.

As llama.cpp's own tool does it: norms, LoRAs and vectors stay fp32, and the large matrices, the
embedding and the head become what was asked for. The vocabulary's texts are made up: only ids are
read here. llama.cpp wants a LoRA's matrices transposed, and calls the first layer's unused value
mix by the tensors of its rate.

    python -m benchmarks.peers.gguf_file IN.pth OUT.gguf f32|f16|bf16|q8|f64
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8": "Q8_0", "f64": "F64"}
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8": 7, "f64": 0}
_LORAS = {"w": "decay", "a": "iclr", "v": "value_residual_mix", "g": "gate"}
_MIXES = {6: ("time_maa", "wkvrg"), 7: ("x", "rwkvag")}


class _Writer:
    """Puts tensors into a file.

    Args:
        path: The file.
        version: Of RWKV.
        kind: ``f32``, ``f16``, ``bf16``, ``q8`` or ``f64``.
    """

    def __init__(self, path: str, version: int, kind: str) -> None:
        self._gguf: Any = importlib.import_module("gguf")
        self.file = self._gguf.GGUFWriter(path, f"rwkv{version}")
        self._type = self._gguf.GGMLQuantizationType[_TYPES[kind]]

    def add(self, name: str, tensor: Tensor, *, large: bool = False) -> None:
        array = tensor.float().contiguous().numpy()
        if not large or self._type.name == "F32":
            self.file.add_tensor(name, array)
        elif self._type.name == "F64":
            self.file.add_tensor(name, tensor.double().contiguous().numpy())
        else:
            data = self._gguf.quants.quantize(array, self._type)
            self.file.add_tensor(name, data, raw_dtype=self._type)

    def vocabulary(self, size: int) -> None:
        """Names every id; id 0 ends a text."""
        kinds = self._gguf.TokenType
        self.file.add_tokenizer_model("rwkv")
        self.file.add_token_list([b"<s>", *(f"<{i}>".encode() for i in range(1, size))])
        self.file.add_token_types([kinds.CONTROL] + [kinds.NORMAL] * (size - 1))

    def close(self) -> None:
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def convert(
    source: str, target: str, kind: str, *, rescale: int = 0, name: str | None = None
) -> None:
    """Writes the file.

    Args:
        source: A ``.pth`` with BlinkDL's names.
        target: The GGUF file.
        kind: ``f32``, ``f16``, ``bf16``, ``q8`` or ``f64``, which llama.cpp does not run.
        rescale: After how many layers llama.cpp halves an RWKV-6's numbers; 0 for never.
        name: What the file calls the model.
    """
    import torch

    z = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    version = 7 if "blocks.0.att.r_k" in z else 6
    writer = _Writer(target, version, kind)
    layers = 1 + max(int(name.split(".")[1]) for name in z if name.startswith("blocks."))
    _describe(writer.file, z, layers, _FILE_TYPES[kind])
    if name is not None:
        writer.file.add_name(name)
    if version == 6:
        writer.file.add_rescale_every_n_layers(rescale)
    writer.vocabulary(len(z["emb.weight"]))
    writer.add("token_embd.weight", z["emb.weight"], large=True)
    writer.add("output.weight", z["head.weight"], large=True)
    for part in ("weight", "bias"):
        writer.add(f"token_embd_norm.{part}", z[f"blocks.0.ln0.{part}"])
        writer.add(f"output_norm.{part}", z[f"ln_out.{part}"])
    for layer in range(layers):
        _layer(writer, z, layer, 2 ** (layer // rescale) if rescale else 1)
        (_time_mix_7 if version == 7 else _time_mix_6)(writer, z, layer)
    writer.close()


def _describe(file: Any, z: Mapping[str, Tensor], layers: int, file_type: int) -> None:
    att = "blocks.0.att."
    file.add_context_length(1 << 20)
    file.add_embedding_length(z["emb.weight"].shape[1])
    file.add_block_count(layers)
    file.add_layer_norm_eps(1e-5)
    if f"{att}r_k" in z:
        file.add_wkv_head_size(z[f"{att}r_k"].shape[1])
        for letter, name in _LORAS.items():
            rank = z[f"blocks.{min(1, layers - 1)}.att.{letter}1"].shape[1]
            getattr(file, f"add_{name}_lora_rank")(rank)
    else:
        file.add_wkv_head_size(z[f"{att}time_faaaa"].shape[1])
        file.add_time_mix_extra_dim(z[f"{att}time_maa_w2"].shape[1])
        file.add_time_decay_extra_dim(z[f"{att}time_decay_w1"].shape[1])
    file.add_feed_forward_length(z["blocks.0.ffn.key.weight"].shape[0])
    file.add_head_count(0)
    file.add_file_type(file_type)


def _layer(writer: _Writer, z: Mapping[str, Tensor], layer: int, halved: int) -> None:
    """Writes what both versions have."""
    import torch

    block, out = f"blocks.{layer}.", f"blk.{layer}."
    for part in ("weight", "bias"):
        writer.add(f"{out}attn_norm.{part}", z[f"{block}ln1.{part}"])
        writer.add(f"{out}attn_norm_2.{part}", z[f"{block}ln2.{part}"])
        writer.add(f"{out}time_mix_ln.{part}", z[f"{block}att.ln_x.{part}"])
    for ours, theirs in (("att", "time_mix"), ("ffn", "channel_mix")):
        for name in ("key", "value", "receptance", "gate", "output"):
            found = z.get(f"{block}{ours}.{name}.weight")
            if found is not None:
                scale = halved if (ours, name) in (("att", "output"), ("ffn", "value")) else 1
                writer.add(f"{out}{theirs}_{name}.weight", found / scale, large=True)
    stem, letters = _MIXES[7 if f"{block}att.r_k" in z else 6]
    mixes = [z[f"{block}att.{stem}_{letter}"].reshape(1, 1, -1) for letter in letters]
    writer.add(f"{out}time_mix_lerp_fused.weight", torch.stack(mixes))
    for letter in "kr":
        found = z.get(f"{block}ffn.{stem}_{letter}")
        if found is not None:
            writer.add(f"{out}channel_mix_lerp_{letter}.weight", found.flatten())


def _time_mix_7(writer: _Writer, z: Mapping[str, Tensor], layer: int) -> None:
    att, time_mix = f"blocks.{layer}.att.", f"blk.{layer}.time_mix_"
    for letter in _LORAS:
        taken = "a" if letter == "v" and layer == 0 else letter
        for place in "012":
            found = z.get(f"{att}{taken}{place}")
            if found is not None:
                tensor = found.squeeze() if place == "0" else found.t()
                writer.add(f"{time_mix}{letter}{place}.weight", tensor)
    for name in ("k_k", "k_a", "r_k"):
        writer.add(f"{time_mix}{name}.weight", z[att + name].flatten())


def _time_mix_6(writer: _Writer, z: Mapping[str, Tensor], layer: int) -> None:
    att, time_mix = f"blocks.{layer}.att.", f"blk.{layer}.time_mix_"
    writer.add(f"{time_mix}lerp_x.weight", z[f"{att}time_maa_x"].flatten())
    writer.add(f"{time_mix}w1.weight", z[f"{att}time_maa_w1"].t())
    writer.add(f"{time_mix}w2.weight", z[f"{att}time_maa_w2"].permute(0, 2, 1))
    writer.add(f"{time_mix}first.weight", z[f"{att}time_faaaa"])
    writer.add(f"{time_mix}decay.weight", z[f"{att}time_decay"].flatten())
    writer.add(f"{time_mix}decay_w1.weight", z[f"{att}time_decay_w1"].t())
    writer.add(f"{time_mix}decay_w2.weight", z[f"{att}time_decay_w2"].t())


if __name__ == "__main__":
    try:
        convert(*sys.argv[1:4])
    except ImportError as error:
        raise SystemExit(f"{error.name} is not installed") from error
