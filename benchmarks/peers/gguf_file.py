"""Writes an RWKV-7 of BlinkDL's names as a GGUF file, so that llama.cpp runs the same weights.

Norms, LoRAs and vectors stay fp32; ``q8`` quantises the large matrices, the embedding and the head
to q8_0, as llama.cpp's own tool does. The vocabulary's texts are made up: only ids are read here.
The easy mistake is to keep a LoRA's matrices as they are: llama.cpp wants them transposed, and
calls the first layer's unused value mix by the tensors of its rate.

    python -m benchmarks.peers.gguf_file IN.pth OUT.gguf f32|q8
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_FILE_TYPES = {"f32": 0, "q8": 7}
_LORAS = {"w": "decay", "a": "iclr", "v": "value_residual_mix", "g": "gate"}


class _Writer:
    """Puts tensors into a file.

    Args:
        path: The file.
        kind: ``f32`` or ``q8``.
    """

    def __init__(self, path: str, kind: str) -> None:
        self._gguf: Any = importlib.import_module("gguf")
        self.file = self._gguf.GGUFWriter(path, "rwkv7")
        self._quantised = kind == "q8"

    def add(self, name: str, tensor: Tensor, *, large: bool = False) -> None:
        array = tensor.float().contiguous().numpy()
        if large and self._quantised:
            q8 = self._gguf.GGMLQuantizationType.Q8_0
            self.file.add_tensor(name, self._gguf.quants.quantize(array, q8), raw_dtype=q8)
        else:
            self.file.add_tensor(name, array)

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


def convert(source: str, target: str, kind: str) -> None:
    """Writes the file.

    Args:
        source: A ``.pth`` with BlinkDL's names.
        target: The GGUF file.
        kind: ``f32`` or ``q8``.
    """
    writer = _Writer(target, kind)
    import torch

    z = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    layers = 1 + max(int(name.split(".")[1]) for name in z if name.startswith("blocks."))
    _describe(writer.file, z, layers, _FILE_TYPES[kind])
    writer.vocabulary(len(z["emb.weight"]))
    writer.add("token_embd.weight", z["emb.weight"], large=True)
    writer.add("output.weight", z["head.weight"], large=True)
    for part in ("weight", "bias"):
        writer.add(f"token_embd_norm.{part}", z[f"blocks.0.ln0.{part}"])
        writer.add(f"output_norm.{part}", z[f"ln_out.{part}"])
    for layer in range(layers):
        _layer(writer, z, layer)
    writer.close()


def _describe(file: Any, z: Mapping[str, Tensor], layers: int, file_type: int) -> None:
    file.add_context_length(1 << 20)
    file.add_embedding_length(z["emb.weight"].shape[1])
    file.add_block_count(layers)
    file.add_layer_norm_eps(1e-5)
    file.add_wkv_head_size(z["blocks.0.att.r_k"].shape[1])
    for letter, name in _LORAS.items():
        rank = z[f"blocks.{min(1, layers - 1)}.att.{letter}1"].shape[1]
        getattr(file, f"add_{name}_lora_rank")(rank)
    file.add_feed_forward_length(z["blocks.0.ffn.key.weight"].shape[0])
    file.add_head_count(0)
    file.add_file_type(file_type)


def _layer(writer: _Writer, z: Mapping[str, Tensor], layer: int) -> None:
    block, out = f"blocks.{layer}.", f"blk.{layer}."
    att, time_mix = f"{block}att.", f"{out}time_mix_"
    for part in ("weight", "bias"):
        writer.add(f"{out}attn_norm.{part}", z[f"{block}ln1.{part}"])
        writer.add(f"{out}attn_norm_2.{part}", z[f"{block}ln2.{part}"])
        writer.add(f"{time_mix}ln.{part}", z[f"{att}ln_x.{part}"])
    import torch

    mixes = [z[f"{att}x_{letter}"].reshape(1, 1, -1) for letter in "rwkvag"]
    writer.add(f"{time_mix}lerp_fused.weight", torch.stack(mixes))
    for letter in _LORAS:
        taken = "a" if letter == "v" and layer == 0 else letter
        for place in "012":
            found = z.get(f"{att}{taken}{place}")
            if found is not None:
                tensor = found.squeeze() if place == "0" else found.t()
                writer.add(f"{time_mix}{letter}{place}.weight", tensor)
    for name in ("k_k", "k_a", "r_k"):
        writer.add(f"{time_mix}{name}.weight", z[att + name].flatten())
    for name in ("key", "value", "receptance", "output"):
        writer.add(f"{time_mix}{name}.weight", z[f"{att}{name}.weight"], large=True)
    writer.add(f"{out}channel_mix_lerp_k.weight", z[f"{block}ffn.x_k"].flatten())
    for name in ("key", "value"):
        writer.add(f"{out}channel_mix_{name}.weight", z[f"{block}ffn.{name}.weight"], large=True)


if __name__ == "__main__":
    try:
        convert(*sys.argv[1:4])
    except ImportError as error:
        raise SystemExit(f"{error.name} is not installed") from error
