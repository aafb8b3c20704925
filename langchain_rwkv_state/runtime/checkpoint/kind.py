"""Says what a file is, from its first bytes; its name is not asked, and no tensors are read.

People rename a ``.pth`` to ``.safetensors``, and what a failed download leaves is a text under a
checkpoint's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from langchain_rwkv_state.errors import ModelLoadError

Kind = Literal["pth", "safetensors", "gguf"]

EXPECTED = (
    "an RWKV checkpoint is a .pth, .safetensors or .gguf file, or a Hugging Face folder of an "
    "RWKV-7"
)
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # PyTorch before 1.6
_POINTER = b"version https://git-lfs"
_HEAD_BYTES = 512


def kind_of(path: Path) -> Kind:
    """Says which container a file is.

    Raises:
        ModelLoadError: It cannot be read, is empty, a text, a pointer of Git LFS, or nothing known.
    """
    head = _head(path)
    if not head:
        raise ModelLoadError(f"{path} is empty: download it again.")
    if head[:4] == b"GGUF":
        return "gguf"
    if head[:2] == b"PK" or head.startswith(_LEGACY):
        return "pth"
    if head[8:9] == b"{" and 0 in head[:8]:
        return "safetensors"
    if head.startswith(_POINTER):
        raise ModelLoadError(
            f"{path} is no checkpoint but a pointer that Git LFS puts in its place: run 'git lfs "
            "pull' in its folder, or download the file itself."
        )
    if 0 not in head and _is_text(head):
        what = "a JSON file: pass the folder" if head[:1] in b"{[" else "a text"
        raise ModelLoadError(
            f"{path} is no checkpoint but {what}: {EXPECTED}. Is the download whole?"
        )
    raise ModelLoadError(f"{path} is no checkpoint: {EXPECTED}. Is the download whole?")


def looks_like_weights(path: Path) -> bool:
    """Says whether a file of any name may hold tensors."""
    head = _head(path)
    is_archive = head[:2] == b"PK" and b"/data.pkl" in head  # and no other .zip
    is_header = head[8:9] == b"{" and 0 in head[:8]
    return is_archive or is_header or head[:4] == b"GGUF" or head.startswith(_LEGACY)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > _HEAD_BYTES - 4  # a character that was cut
    return True
