"""Says whether a model is a G1: from its name, and from what its file says of itself.

G1 models (G0, G1, G1a to G1x) want prompts of their own; nothing in their tensors tells them from
World models, so that this is the one question which a name answers. Only the last part of a path
counts: a folder called ``g1`` says nothing of what lies in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint.fla_names import read_config
from langchain_rwkv_state.runtime.checkpoint.gguf_file import read_gguf_metadata
from langchain_rwkv_state.runtime.checkpoint.kind import kind_of
from langchain_rwkv_state.runtime.checkpoint.where import find

_G1 = re.compile(r"(?<![a-z0-9])g[01][a-z]?(?![a-z0-9])", re.IGNORECASE)
_GGUF_KEYS = ("general.name", "general.basename", "general.finetune")
_CONFIG_KEYS = ("_name_or_path", "name")


def is_g1(model: str | Path) -> bool:
    """Says whether a model is called a G1.

    Looked at are a name on a hub as a whole, unless its last part says World; of a path the last
    part, where a link leads, and the names in a GGUF's metadata or a folder's ``config.json``. A
    path that does not exist, or cannot be read, is judged by its name alone: whoever loads it says
    what is wrong.

    Args:
        model: A file, a folder, or a name on a hub.

    Example:
        >>> is_g1("rwkv7-g1a-0.4b-20250905-ctx4096.pth"), is_g1("RWKV-x070-World-0.4B.pth")
        (True, False)
        >>> is_g1("fla-hub/rwkv7-0.1B-g1")
        True
    """
    return any(_G1.search(name) for name in _names(model))


def _of_hub(name: str) -> str:
    """Returns what of a name on a hub to look at: its last part where that says World."""
    last = name.rpartition("/")[2]
    return last if "world" in last.lower() else name


def _names(model: str | Path) -> Iterator[str]:
    path = Path(model).expanduser()
    if not path.exists():
        yield _of_hub(model) if isinstance(model, str) and not path.is_absolute() else path.name
        return
    yield path.absolute().name
    yield path.resolve().name
    try:
        found = find(path)
        yield from (file.name for file in found.files)
        texts = read_config(found.config)
        yield from (Path(str(texts.get(key, ""))).name for key in _CONFIG_KEYS)
        if kind_of(found.files[0]) == "gguf":
            metadata = read_gguf_metadata(found.files[0])
            yield from (str(metadata.get(key, "")) for key in _GGUF_KEYS)
    except (ModelLoadError, OSError, ValueError):
        return
