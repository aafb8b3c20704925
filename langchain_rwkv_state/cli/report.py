"""The command ``report``: writes everything there is to see of a session as one page.

It measures and hands on; the page itself is made in `views`. Nothing is written over, and that is
found out before anything is measured.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_rwkv_state._files import require_new, write_whole
from langchain_rwkv_state._version import __version__
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_session
from langchain_rwkv_state.cli.options import StoreOption
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session
from langchain_rwkv_state.cli.states import HealthyOption, read_healthy
from langchain_rwkv_state.cli.streams import read_text

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Healthy
    from langchain_rwkv_state.store import StateStore
    from langchain_rwkv_state.toolbox.recall import Recall
    from langchain_rwkv_state.views.report.session_report import SessionReport


def report(
    session: Annotated[str, typer.Argument(help="Its name.", autocompletion=complete_session)],
    out: Annotated[Path, typer.Argument(help="A new .html file.")],
    recall: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `rwkv-state recall --json FILE` measured.",
            show_default="the built-in model's figures for its sessions",
        ),
    ] = None,
    healthy: HealthyOption = None,
    store: StoreOption = None,
) -> None:
    """Write a page on a session: log, sizes, health, heat maps, and what its model recalls.

    The page is one file that loads nothing and runs no script, and holds no word of the
    conversation.
    """
    if out.suffix not in (".html", ".htm"):
        raise typer.BadParameter(f"A page ends with .html, not as {out.name!r} does.")
    require_new(out)
    ranges, measured = read_healthy(healthy), _read_recall(recall)
    with existing_store(store) as opened:
        if opened is None:
            raise unknown_session(session)
        found = gather(opened, session, ranges, measured)

    from langchain_rwkv_state.views.report.page import report_page

    write_whole(out, report_page(found).encode("utf-8", "replace"), new=True)
    output.written(out)
    if found.recall is not None and found.recall.fingerprint != found.fingerprint:
        output.note("The recall figures are those of another model; the page says so.")


def _read_recall(file: Path | None) -> Recall | None:
    from langchain_rwkv_state.toolbox.recall import Recall

    return None if file is None else Recall.from_json(read_text(file))


def _built_in(fingerprint: str) -> Recall | None:
    """Returns what the built-in model recalled, if that is the model."""
    from langchain_rwkv_state.demo import RECALL_PATH

    found = _read_recall(RECALL_PATH)
    return found if found is not None and found.fingerprint == fingerprint else None


def gather(
    store: StateStore, session: str, healthy: Healthy | None, recall: Recall | None
) -> SessionReport:
    """Measures all that a report shows; this counts as no use of the session.

    Recall is not measured here, which takes minutes; the built-in model's figures come with it.
    """
    from langchain_rwkv_state.state import difference_map, head_maps, inspect
    from langchain_rwkv_state.store.events import snapshot_of, state_if_kept
    from langchain_rwkv_state.views.report.session_report import SessionReport

    found = snapshot_of(store, session)
    if found is None:
        raise unknown_session(session)
    state = found.state
    before = state_if_kept(store, found.log[0].parent if found.log else None)
    comparable = before is not None and before.fingerprint == state.fingerprint
    return SessionReport(
        info=found.info,
        log=found.log,
        layout=state.layout,
        fingerprint=state.fingerprint,
        inspection=inspect(state, healthy=healthy),
        healthy=healthy,
        maps=head_maps(state),
        difference=difference_map(state, before) if before is not None and comparable else None,
        recall=recall or _built_in(state.fingerprint),
        made_seconds=time.time(),
        version=__version__,
    )
