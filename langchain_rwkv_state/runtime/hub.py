"""Downloads models from a hub: turns ``org/repo/file.pth`` into files in the hub's own cache.

huggingface_hub does the work and is asked as it is configured (``HF_ENDPOINT``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``, ``HF_HOME``); here are the choice of files and errors that say what to do. A
dropped connection goes on where it broke; a process that was killed begins the file anew.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from huggingface_hub import (
    HfApi,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint.where import (
    INDEX_SUFFIX,
    SHARD,
    STANDARD,
    SUFFIXES,
    find,
)

logger = logging.getLogger(__name__)

_LIBRARY = "langchain-rwkv-state"
_BESIDE = ("config.json", "tokenizer.json")


def download(repo: str, file: str | None = None, *, quiet: bool = False) -> Path:
    """Returns a file of a hub's repository, or a folder of shards or of a Hugging Face model.

    What is in the cache is taken from there.

    Args:
        repo: ``org/repo``.
        file: Path inside the repository, of a file or a folder; ``None`` for its only checkpoint.
        quiet: Whether the client draws no progress bar; its setting is the process's own, and is
            put back.

    Raises:
        ModelLoadError: The hub cannot be reached, has no such file or does not give it, or the
            repository holds several checkpoints.
    """
    try:
        with _without_bars() if quiet else nullcontext():
            if file is not None and file.endswith(SUFFIXES):
                return _fetched(repo, file)
            names = _files(repo)
            if file in names:
                return _fetched(repo, str(file))
            return _whole(repo, names, file)
    except ModelLoadError:
        raise
    except Exception as error:  # those of the hub, of its HTTP client and of the disk
        cached = _cached(repo, file, error)
        if cached is None:
            raise _explained(repo, file, error) from error
        return cached


@contextmanager
def _without_bars() -> Iterator[None]:
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _fetched(repo: str, file: str) -> Path:
    if not isinstance(try_to_load_from_cache(repo, file), str):
        logger.info("Downloading %s of %s", file, repo)
    return Path(hf_hub_download(repo, file, library_name=_LIBRARY))


def _files(repo: str) -> list[str]:
    """Returns the names of a repository's files."""
    siblings = HfApi(library_name=_LIBRARY).model_info(repo).siblings or []
    return sorted(sibling.rfilename for sibling in siblings)


def _whole(repo: str, names: Sequence[str], folder: str | None) -> Path:
    """Returns the checkpoint of a repository or of one of its folders."""
    start = "" if folder is None else f"{folder.rstrip('/')}/"
    inside = [name for name in names if name.startswith(start)]
    if folder is not None and not inside:
        raise EntryNotFoundError(f"no file {folder}")
    here = [name.removeprefix(start) for name in inside if "/" not in name.removeprefix(start)]
    parts = _parts(here)
    if not parts:
        return _fetched(repo, _only_checkpoint(repo, [n for n in inside if n.endswith(SUFFIXES)]))
    folders = {_fetched(repo, start + name).parent for name in parts}
    if len(folders) > 1:
        raise ModelLoadError(f"{repo} was changed while it was downloaded: load it again.")
    return folders.pop()


def _parts(names: Sequence[str]) -> list[str]:
    """Returns the files of a folder that is taken whole; none where one file is the model."""
    beside = [name for name in names if name in _BESIDE]
    shards = [name for name in names if SHARD.fullmatch(name)]
    if shards:
        safe = [name for name in shards if name.endswith(".safetensors")]
        suffix = Path((safe or shards)[0]).suffix
        index = [n for n in names if n.endswith(f"{suffix}{INDEX_SUFFIX}")]
        return [*(safe or shards), *index, *beside]
    standard = next((name for name in STANDARD if name in names), None)
    return [standard, *beside] if standard and "config.json" in beside else []


def _cached(repo: str, file: str | None, error: Exception) -> Path | None:
    """Returns what the cache has of a repository that cannot be asked; ``None`` for nothing."""
    if isinstance(error, HfHubHTTPError | HFValidationError | EntryNotFoundError):
        return None  # it could be asked, and said no
    try:
        folder = Path(snapshot_download(repo, local_files_only=True, library_name=_LIBRARY))
        path = folder / (file or "")
        find(path)
    except Exception:  # noqa: BLE001  # the first error says what is wrong
        return None
    return path


def _only_checkpoint(repo: str, names: list[str]) -> str:
    if not names:
        raise ModelLoadError(
            f"{repo} holds no .pth, .safetensors or .gguf file: is it an RWKV model?"
        )
    models = {Path(name).with_suffix("") for name in names}
    if len(models) > 1:
        listed = "\n  ".join(f"{repo}/{name}" for name in names)
        raise ModelLoadError(f"{repo} holds several checkpoints: name one of\n  {listed}")
    return names[-1]  # .safetensors comes behind .pth


def _near(repo: str, file: str | None) -> str:
    """Returns the end of a sentence that names files like the one that is missing."""
    try:
        names = [name for name in _files(repo) if name.endswith(SUFFIXES)]
    except Exception:  # noqa: BLE001  # the answer is only a hint
        names = []
    near = difflib.get_close_matches(file or "", names, n=3, cutoff=0.5) or names[:3]
    return f": did you mean {' or '.join(near)}?" if near else ", nor any other checkpoint."


def _explained(repo: str, file: str | None, error: Exception) -> ModelLoadError:
    """Returns the error that says what a user can do."""
    reason = _first_line(error)
    if isinstance(error, GatedRepoError):
        message = (
            f"{repo} gives its files only to those who were granted access: accept its terms on "
            "its page and set HF_TOKEN."
        )
    elif isinstance(error, RepositoryNotFoundError):
        message = (
            f"There is no path {repo!r} here and no model of that name on the hub: check the "
            "name; for a private one set HF_TOKEN."
        )
    elif isinstance(error, HFValidationError):
        message = f"{repo!r} is neither a path that exists nor a name on the hub ({reason})."
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        message = f"{repo} on the hub has no file {file!r}{_near(repo, file)}"
    elif isinstance(error, HfHubHTTPError):
        message = (
            f"The hub did not give {file or 'the list of files'} of {repo} ({reason}): try again "
            "later, or give the path of a local file."
        )
    elif isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        message = f"{repo}/{file} could not be kept in the hub's cache: {error}."
    else:
        message = (
            f"{repo}{f'/{file}' if file else ''} is neither a file here nor in the cache, and the "
            f"hub cannot be reached ({reason}): connect to the network (and unset "
            "HF_HUB_OFFLINE), or give the path of a local file."
        )
    return ModelLoadError(message)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
