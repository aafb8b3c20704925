"""Models from a hub: a name like ``org/repo/file.pth`` to a file in the hub's own cache.

huggingface_hub does the work and is asked as it is configured (``HF_ENDPOINT``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``, ``HF_HOME``); here are the choice of a file and errors that say what to do. The
easy mistake is to promise more resuming than there is: a dropped connection goes on where it broke,
but a process that was killed begins the file anew.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.files import SUFFIXES

_LIBRARY = "langchain-rwkv-state"


def download(repo: str, file: str | None = None) -> Path:
    """Returns a file of a hub's repository, from the cache where it is there already.

    Args:
        repo: ``org/repo``.
        file: Path inside the repository; ``None`` for its only checkpoint.

    Raises:
        ModelLoadError: The hub cannot be reached, has no such file or does not give it, or the
            repository holds several checkpoints.
    """
    try:
        name = file or _only_checkpoint(repo, _checkpoints(repo))
        return Path(hf_hub_download(repo, name, library_name=_LIBRARY))
    except ModelLoadError:
        raise
    except Exception as error:  # those of the hub, of its HTTP client and of the disk
        raise _explained(repo, file, error) from error


def _checkpoints(repo: str) -> list[str]:
    """Returns the names of a repository's checkpoints."""
    siblings = HfApi(library_name=_LIBRARY).model_info(repo).siblings or []
    names = (sibling.rfilename for sibling in siblings)
    return sorted(name for name in names if name.endswith(SUFFIXES))


def _only_checkpoint(repo: str, names: list[str]) -> str:
    if not names:
        raise ModelLoadError(f"{repo} holds no .pth or .safetensors file: is it an RWKV model?")
    models = {Path(name).with_suffix("") for name in names}
    if len(models) > 1:
        listed = "\n  ".join(f"{repo}/{name}" for name in names)
        raise ModelLoadError(f"{repo} holds several checkpoints: name one of\n  {listed}")
    return names[-1]  # .safetensors comes behind .pth


def _near(repo: str, file: str | None) -> str:
    """Returns the end of a sentence that names files like the one that is missing."""
    try:
        names = _checkpoints(repo)
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
