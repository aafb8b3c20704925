"""Makes the figures that pictures are drawn on, with one look, and saves them.

Nothing is measured here, and no figure knows what is drawn on it. matplotlib is imported where it
is used, and never `pyplot`, which keeps every figure in a global list, and may open a window.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state._files import require_new, whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
STATE, TRANSCRIPT, QUIET, EXTRA = "#1f6f8b", "#d1495b", "#8d99ae", "#edae49"
_DPI = 110


def require_picture(path: Path) -> Path:
    """Checks that a picture can be drawn to a path, before anything is measured for it.

    Args:
        path: Where to.

    Returns:
        The path.

    Raises:
        ValueError: It has another ending than .png, .svg or .pdf, or matplotlib is not installed.
        FileExistsError: It is there already.
        FileNotFoundError: There is no directory for it.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"A picture ends with {', '.join(ENDINGS)}, not as {path.name!r} does.")
    _figure_class()
    return require_new(path)


def figure(width_inches: float, height_inches: float) -> Figure:
    """Returns an empty figure.

    Raises:
        ValueError: matplotlib is not installed.
    """
    return _figure_class()(figsize=(width_inches, height_inches), dpi=_DPI, layout="constrained")


def without_frame(axes: Any) -> None:
    """Takes away the upper and the right line of a diagram."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(drawn: Figure, path: Path) -> None:
    """Writes a figure to a new file, in the format that the path's ending says."""
    kind = path.suffix.lstrip(".")
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with whole_file(path, new=True) as file:
        drawn.savefig(file, format=kind, metadata=undated[kind])


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "Pictures need matplotlib: pip install 'langchain-rwkv-state[plots]'."
        ) from error
    return Figure
