"""Loads a model by its name: `load_runtime` gives a `Runtime`.

Finds the file, reads what it is, checks that the strategy can be had, and only then loads weights,
once for the process. It neither parses checkpoints nor runs them. A file that was replaced is
another model: what is shared goes by path, size, time and inode.
"""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import os
import re
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from langchain_rwkv_state._free_memory import is_out_of_memory
from langchain_rwkv_state._registry import Hold
from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.change import Change
from langchain_rwkv_state.runtime.checkpoint import SUFFIXES, Checkpoint, find, read_tensors
from langchain_rwkv_state.runtime.cuda.model import CudaModel
from langchain_rwkv_state.runtime.handle import Model, RuntimeHandle
from langchain_rwkv_state.runtime.native.model import NativeModel
from langchain_rwkv_state.runtime.needed_memory import too_large
from langchain_rwkv_state.runtime.registry import MODELS, SharedModel, return_memory
from langchain_rwkv_state.runtime.rwkv_package.adapter import PackageModel
from langchain_rwkv_state.runtime.strategy import Strategy

logger = logging.getLogger(__name__)

DEMO = "demo"
_HUB_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:/(?P<file>.+))?")
_KERNEL_HEAD_SIZE = 64  # compiled into the package's kernel for RWKV-7


def load_runtime(
    model: str | Path,
    strategy: str = "auto",
    tokenizer: str | None = None,
    *,
    template: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Runtime:
    """Loads a model, or shares the one that this process has loaded already.

    Args:
        model: A ``.pth``, ``.safetensors`` or ``.gguf`` file, a folder that holds one, its shards
            or a Hugging Face RWKV-7; ``"demo"`` for the built-in model; or a name on the hub,
            ``"org/repo/file.pth"`` or ``"org/repo"``. A path that exists wins over a name.
        strategy: ``"auto"`` (fp16 on a CUDA card, else fp32 on the CPU) or ``"<device> <dtype>"``,
            such as ``"cuda:1 bf16"``: RWKV-7 on the native runtime, older versions on the `rwkv`
            package. ``"cpu int8"``, ``"cuda int8"`` and ``"cuda fp8"`` keep RWKV-7's weights in
            8 bits, ``"cuda fp16 state_fp16"`` its WKV states in 16: both lose digits.
            ``package`` before it takes the package for RWKV-7, too. Older versions also run by
            layers, ``"cuda fp16i8 *10 -> cpu fp32"``. On a CPU the native runtime computes fp32
            from weights as the file has them; fp16 and bf16 are ten times slower there. On CUDA
            the package's own kernels are used where its switch ``RWKV_CUDA_ON=1`` is set.
        tokenizer: Identity of the tokenizer, which becomes part of the fingerprint; ``None``
            where the caller deals in token ids.
        template: Identity of the chat template, likewise.
        on_progress: Called with (bytes read, bytes in all), on another thread, as the file is read;
            not at all where the process has loaded it already.

    Returns:
        A runtime, safe to use from several threads. Its `close` gives the weights back, and the
        last close of a process frees them.

    Raises:
        ModelLoadError: The model cannot be found or read, the strategy cannot be had, or the memory
            does not suffice; the message names what and says what to do.

    Example:
        >>> runtime = load_runtime("demo", strategy="cpu fp32")  # doctest: +SKIP
        >>> logits, state = runtime.forward([1, 2, 3], runtime.zero_state())  # doctest: +SKIP
        >>> logits.shape == (runtime.vocab_size,), state.n_tokens  # doctest: +SKIP
        (True, 3)
    """
    return _handle(
        model, strategy, None, tokenizer=tokenizer, template=template, on_progress=on_progress
    )


def load_changed(model: str | Path, change: Change, strategy: str = "auto") -> Runtime:
    """Loads a model with other weights than its file has, beside the plain one.

    Args:
        model: As for `load_runtime`.
        change: What is done to the tensors; part of the fingerprint where it changes any.
        strategy: As for `load_runtime`.

    Returns:
        A runtime, as from `load_runtime`; equal changes of one file share their weights, and one
        that changes nothing shares the plain model's.

    Raises:
        ModelLoadError: As for `load_runtime`.
        ValueError: The change makes no sense for the model.
    """
    path = locate(model)
    tensors = read_tensors(path, mapped=True)
    if not change.of(tensors, Checkpoint.of(tensors, path)):
        return load_runtime(model, strategy)  # whose weights these are, and perhaps loaded already
    return _handle(model, strategy, change)


def check_model(model: str | Path, strategy: str = "auto") -> None:
    """Checks what can be checked of a model's name and a strategy without loading anything.

    Args:
        model: As for `load_runtime`; a name on the hub is not looked up.
        strategy: As for `load_runtime`; whether its devices are there is not checked.

    Raises:
        ModelLoadError: There is no such file, or no such strategy.
    """
    Strategy.check(strategy)
    try:
        path = Path(model).expanduser()
        is_path = isinstance(model, Path) or path.exists() or not _is_hub_name(model)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelLoadError(
            f"{str(model)[:80]!r} can be no model's path ({error!s:.120}): pass a file, 'demo', or "
            "org/repo."
        ) from error
    if model != DEMO and is_path:
        find(path)


def locate(model: str | Path, *, quiet: bool = False) -> Path:
    """Returns the file or the folder of a model, downloaded if need be.

    Args:
        model: As for `load_runtime`.
        quiet: Whether the hub's client draws no progress bar, even on a terminal.

    Raises:
        ModelLoadError: There is no such file, or the hub does not give it.
    """
    if model == DEMO:
        return _demo_path()
    if model == "":  # which, as a path, is the folder that the process happens to be in
        raise ModelLoadError(f"The model's name is empty: give {DEMO!r}, or the path of a model.")
    path = Path(model).expanduser()
    if isinstance(model, Path) or path.exists() or not _is_hub_name(model):
        find(path)
        return path
    # The hub's client takes a third of a second to import, for nothing where there is a file.
    from langchain_rwkv_state.runtime.hub import download

    match = _HUB_NAME.fullmatch(model)
    assert match is not None  # noqa: S101  # _is_hub_name
    return download(match["repo"], match["file"], quiet=quiet)


def _is_hub_name(text: str) -> bool:
    """Says whether a text that is no existing path reads as ``org/repo[/file]``."""
    match = _HUB_NAME.fullmatch(text)
    if match is None or (text.count("/") == 1 and text.endswith(SUFFIXES)):
        return False
    return not Path(text.partition("/")[0]).is_dir()


def _demo_path() -> Path:
    try:
        found = getattr(importlib.import_module("langchain_rwkv_state.demo"), "MODEL_PATH", None)
    except ImportError:
        found = None
    if found is None or not Path(found).is_file():
        raise ModelLoadError(
            "The built-in model is not part of this installation: install langchain-rwkv-state "
            "anew, or give the path of a model."
        )
    return Path(found)


def share_model(
    model: str | Path,
    strategy: str = "auto",
    *,
    on_progress: Callable[[int, int], None] | None = None,
    quiet: bool = False,
) -> tuple[Path, Hold[SharedModel]]:
    """Returns a model's file or folder, and a hold on what this process has of it once.

    Args:
        model: As for `load_runtime`.
        strategy: As for `load_runtime`.
        on_progress: As for `load_runtime`.
        quiet: As for `locate`.

    Raises:
        ModelLoadError: As for `load_runtime`.
    """
    path, shared, give_back = _share(model, strategy, None, on_progress, quiet=quiet)
    return path, Hold(shared, give_back)


def _share(
    model: str | Path,
    strategy: str,
    change: Change | None,
    on_progress: Callable[[int, int], None] | None,
    *,
    quiet: bool = False,
) -> tuple[Path, SharedModel, Callable[..., None]]:
    chosen = Strategy.parse(strategy)
    chosen.require_devices()
    path = locate(model, quiet=quiet)
    kernels = _kernels(chosen)

    def load() -> SharedModel:
        found = _on_a_thread(functools.partial(_load, path, chosen, kernels, change, on_progress))
        for fallback in getattr(found, "fallbacks", ()):
            logger.warning("%s runs, but slower than it could: %s", path, fallback)
        return SharedModel(found, chosen.as_run(native=isinstance(found, (CudaModel, NativeModel))))

    return path, *MODELS.hold(_key(path, chosen, change), load)


def _handle(
    model: str | Path,
    strategy: str,
    change: Change | None,
    *,
    tokenizer: str | None = None,
    template: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> RuntimeHandle:
    _, shared, give_back = _share(model, strategy, change, on_progress)
    try:
        return shared.runtime(str(model), give_back, tokenizer=tokenizer, template=template)
    except BaseException:
        give_back()
        raise


def model_key(model: str | Path, strategy: str = "auto") -> Hashable:
    """Names what `load_runtime` loads: equal keys share their weights.

    Args:
        model: As for `load_runtime`.
        strategy: As for `load_runtime`.

    Raises:
        ModelLoadError: There is no such file, or no such strategy.
    """
    return _key(locate(model), Strategy.parse(strategy), None)


def _key(path: Path, strategy: Strategy, change: Change | None) -> Hashable:
    return (_identity(path), strategy, _kernels(strategy), change)


def _kernels(strategy: Strategy) -> bool:
    return os.environ.get("RWKV_CUDA_ON") == "1" and strategy.on_cuda


def _identity(path: Path) -> tuple[Hashable, ...]:
    stats = [(file, file.stat()) for file in find(path).files]
    return tuple(
        (str(file.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        for file, stat in stats
    )


def _on_a_thread(load: Callable[[], Model]) -> Model:
    """Loads on a thread that ends with it.

    PyTorch keeps a pool of OpenMP threads for each thread that computed. Where the caller had one
    beside the thread that runs the model, there would be more of them than cores, and they would
    sleep between operations instead of spinning: decoding takes half as long again.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="rwkv-load") as pool:
        loaded = pool.submit(load).result()
    return_memory()  # what the file's own tensors took, which the model has in another form
    return loaded


def _load(
    path: Path,
    strategy: Strategy,
    kernels: bool,
    change: Change | None,
    on_progress: Callable[[int, int], None] | None,
) -> Model:
    try:
        return _read(path, strategy, kernels, change, on_progress)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
    # Out here, where nothing holds the error, what was loaded is free again and is counted so.
    gc.collect()
    return_memory()
    raise ModelLoadError(too_large(read_tensors(path, mapped=True), path, strategy, reason))


def _read(
    path: Path,
    strategy: Strategy,
    kernels: bool,
    change: Change | None,
    on_progress: Callable[[int, int], None] | None,
) -> Model:
    tensors = read_tensors(path, on_progress=on_progress)
    checkpoint = Checkpoint.of(tensors, path)
    if change is not None:  # and it changes something: `load_changed` has asked
        tensors |= change.of(tensors, checkpoint)
        checkpoint = checkpoint.changed(tensors, change.name)
    if strategy.is_native_for(checkpoint.version, deep_embed=checkpoint.deep_embed):
        native = CudaModel if strategy.on_cuda else NativeModel
        return native(tensors, checkpoint, strategy.stages[0])
    strategy.require_for(checkpoint.version)
    fits = checkpoint.version != "7" or checkpoint.head_size == _KERNEL_HEAD_SIZE
    try:
        return PackageModel(tensors, checkpoint, strategy, kernels=kernels and fits)
    except Exception as error:  # whatever the package raises, and asserts
        if is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
        switch = ", unset RWKV_CUDA_ON" if kernels else ""
        raise ModelLoadError(
            f"The rwkv package could not load {path} with the strategy {str(strategy)!r}: "
            f"{reason}. Try another strategy, such as 'cpu fp32'{switch}, or a smaller model."
        ) from error
