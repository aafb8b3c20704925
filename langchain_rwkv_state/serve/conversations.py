"""Serves ``/v1/conversations``: a conversation is a session of the store, and its id the name.

One that is made here has an id that begins with ``conv_``, and is there before its first turn. A
client may also choose any other name: that conversation begins with its first turn. The easy
mistake is to let a ``conv_`` id begin anew once it was deleted or ran out: the model would have
forgotten everything, and nobody would know.
"""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter

from langchain_rwkv_state.conversation.unread import as_unread
from langchain_rwkv_state.serve.errors import ApiError, checking, unsupported
from langchain_rwkv_state.serve.fields import Body
from langchain_rwkv_state.serve.models import Asks, Settings
from langchain_rwkv_state.serve.response_items import read_items
from langchain_rwkv_state.store import SessionInfo, StateStore

router = APIRouter()

_MADE_HERE = "conv_"


class ConversationRequest(Body):
    """A request for a conversation."""

    items: list[Any] | None = None
    metadata: dict[str, str] | None = None


@router.post("/v1/conversations")
async def create_conversation(
    tenant: Asks, settings: Settings, asked: ConversationRequest | None = None
) -> dict[str, Any]:
    """Makes a conversation; items are read with its first turn."""
    asked = asked or ConversationRequest()
    if asked.metadata:
        raise unsupported(
            "metadata", "a conversation is a state, and nothing beside. Leave it out."
        )
    name = _MADE_HERE + secrets.token_hex(24)
    items = read_items(asked.items, named="items") if asked.items else []
    texts = [as_unread(message) for message in items]
    if texts:
        await tenant.store.aappend_unread(name, texts, settings.ttl)
    else:
        await tenant.store.acreate_session(name, settings.ttl)
    return _document(name, await _session(tenant.store, name))


# Before the others: a name may hold slashes.
@router.get("/v1/conversations/{name:path}/items")
@router.post("/v1/conversations/{name:path}/items")
@router.post("/v1/conversations/{name:path}")
async def no_items(name: str) -> dict[str, Any]:
    """Says that no words are kept."""
    raise ApiError(
        400,
        f"The conversation {name!r:.100} is a state, of which no words and no metadata are kept: "
        "say in a turn what it is to know.",
        code="unsupported",
    )


@router.get("/v1/conversations/{name:path}")
async def get_conversation(name: str, tenant: Asks) -> dict[str, Any]:
    """Describes a conversation."""
    return _document(name, await _session(tenant.store, name))


@router.delete("/v1/conversations/{name:path}")
async def delete_conversation(name: str, tenant: Asks) -> dict[str, Any]:
    """Deletes a conversation; responses of it that were kept can still be gone on from."""
    with checking():
        known = await tenant.store.adelete_session(name)
    if not known:
        raise _not_found(name)
    return {"id": name, "object": "conversation.deleted", "deleted": True}


async def require_conversation(store: StateStore, name: str) -> None:
    """Checks that a conversation is there, where it was made here.

    Args:
        store: The store of whoever asks.
        name: Its id.

    Raises:
        ApiError: It was deleted, ran out, or never was.
    """
    if name.startswith(_MADE_HERE):
        await _session(store, name)


async def _session(store: StateStore, name: str) -> SessionInfo:
    with checking():
        info = await store.asession(name, renew=False)
    if info is None:
        raise _not_found(name)
    return info


def _document(name: str, info: SessionInfo) -> dict[str, Any]:
    return {
        "id": name,
        "object": "conversation",
        "created_at": int(info.created_seconds),
        "metadata": {},
        # Ours: by it, whoever never heard how a turn ended learns whether it was committed.
        "turns": info.n_turns,
        "tokens": info.n_tokens,
    }


def _not_found(name: str) -> ApiError:
    return ApiError(
        404,
        f"There is no conversation {name!r:.100}: it was deleted, its time ran out, or it never "
        "was. POST /v1/conversations makes one.",
        code="not_found",
        param="conversation",
    )
