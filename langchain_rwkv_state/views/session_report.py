"""What a report on a session tells: everything that was found, as one value.

Plain values, measured elsewhere and drawn elsewhere. The easy mistake is to put a message's text
here: a report is made to be shown to others, so unread messages are counted and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from langchain_rwkv_state.state import HeadMap, Healthy, Inspection, StateLayout
from langchain_rwkv_state.store import LogEntry, SessionInfo
from langchain_rwkv_state.toolbox.recall import Recall


@dataclass(frozen=True)
class SessionReport:
    """A session, looked at.

    Attributes:
        info: The session as it stands.
        log: Its log, newest first.
        layout: Shapes of its state.
        fingerprint: The model that the state belongs to.
        inspection: What `inspect` said of the state.
        healthy: The ranges that it was judged by, ``None`` for none.
        maps: Figures of each head.
        difference: How far each head is from the state before; ``None`` where none is kept.
        recall: What the model recalled when it was measured; ``None`` where it was not.
        made_seconds: Unix time of the report.
        version: Version of this package.
    """

    info: SessionInfo
    log: tuple[LogEntry, ...]
    layout: StateLayout
    fingerprint: str
    inspection: Inspection
    healthy: Healthy | None
    maps: tuple[HeadMap, ...]
    difference: HeadMap | None
    recall: Recall | None
    made_seconds: float
    version: str
