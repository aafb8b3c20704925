"""Says what ``--json`` prints, command by command, as JSON schemas: `docs/json.md` links to them.

Each command makes its document itself; the tests hold what it prints, and the fields that
`docs/json.md` names, to the schema here. Nothing that is not written here may be printed, and all
that is written here always is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_TIME: Schema = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
_REF: Schema = {"type": "string", "pattern": "^rwkv1-[0-9a-f]{64}$"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _object(**fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


_SESSION: dict[str, Schema] = {
    "session": _TEXT,
    "model": _or_null(_TEXT),
    "fingerprint": _or_null(_TEXT),
    "head": _or_null(_REF),
    "turns": _COUNT,
    "tokens": _COUNT,
    "bytes": _COUNT,
    "unread": _COUNT,
    "created": _TIME,
    "updated": _TIME,
    "expires": _or_null(_TIME),
}

_FINDING = _object(
    section=_TEXT,
    name=_TEXT,
    value=_TEXT,
    figure=_or_null(_NUMBER),
    unit=_or_null(_TEXT),
    advice=_or_null(_TEXT),
)

SCHEMAS: Mapping[str, Schema] = {
    "ask": _object(
        answer=_TEXT,
        session=_or_null(_TEXT),
        state=_or_null(_REF),
        model=_TEXT,
        finish_reason=_TEXT,
        input_tokens=_COUNT,
        output_tokens=_COUNT,
        cached_tokens=_COUNT,
    ),
    "sessions": _object(store=_TEXT, sessions=_list(_object(**_SESSION)), damaged=_list(_TEXT)),
    "show": _object(
        **_SESSION,
        log=_list(
            _object(state=_REF, parent=_or_null(_REF), tokens=_COUNT, created=_TIME, kept=_FLAG)
        ),
        unread_messages={"type": "array"},
    ),
    "prune": _object(store=_TEXT, removed=_COUNT),
    "doctor": _object(well=_FLAG, findings=_list(_FINDING)),
    "inspect": _object(
        version=_COUNT,
        layers=_COUNT,
        width=_COUNT,
        tokens=_COUNT,
        bytes=_COUNT,
        fingerprint=_TEXT,
        verdict=_TEXT,
        problems=_list(_TEXT),
        tensors=_list(
            _object(
                name=_TEXT,
                mean_abs=_NUMBER,
                max_abs=_NUMBER,
                rms=_NUMBER,
                range_used=_NUMBER,
                n_nan=_COUNT,
                n_inf=_COUNT,
                ranks=_list(_NUMBER),
            )
        ),
        maps=_list(
            _object(
                name=_TEXT,
                title=_TEXT,
                columns=_TEXT,
                values=_list(_list(_or_null(_NUMBER))),
            )
        ),
    ),
    "diff": _object(
        first=_TEXT,
        second=_TEXT,
        metric=_TEXT,
        total=_or_null(_NUMBER),
        layers=_list(_or_null(_NUMBER)),
        tensors={"type": "object", "additionalProperties": _or_null(_NUMBER)},
    ),
    "codecs": _object(
        source=_TEXT,
        codecs=_list(
            _object(
                codec=_TEXT,
                bytes=_COUNT,
                share=_NUMBER,
                encode_seconds=_NUMBER,
                decode_seconds=_NUMBER,
                moved=_or_null(_NUMBER),
                kl_nats=_or_null(_NUMBER),
            )
        ),
    ),
    "memory": _object(
        model=_TEXT,
        version=_COUNT,
        layers=_COUNT,
        width=_COUNT,
        state_bytes=_COUNT,
        bytes_a_number=_COUNT,
        heads_a_group=_COUNT,
        contexts=_list(_object(tokens=_COUNT, cache_bytes=_COUNT, grouped_cache_bytes=_COUNT)),
    ),
    "size": _object(
        model=_TEXT,
        version=_COUNT,
        layers=_COUNT,
        width=_COUNT,
        strategy=_TEXT,
        weights_bytes=_COUNT,
        state_bytes=_COUNT,
        slots=_COUNT,
        slots_bytes=_COUNT,
        staged_bytes=_COUNT,
        sessions=_COUNT,
        states_a_session=_COUNT,
        codec=_TEXT,
        stored_state_bytes=_COUNT,
        stored_bytes=_COUNT,
        redis_state_bytes=_COUNT,
        redis_bytes=_COUNT,
    ),
    "cache": _object(
        directory=_TEXT,
        bytes=_COUNT,
        states=_list(
            _object(
                fingerprint=_TEXT,
                salted=_FLAG,
                tokens=_COUNT,
                bytes=_COUNT,
                hits=_COUNT,
                used=_TIME,
                expires=_or_null(_TIME),
                pin=_or_null(_TEXT),
                above=_or_null(_COUNT),
                text=_or_null(_TEXT),
            )
        ),
    ),
    "cache explain": _object(
        tokens=_COUNT, reused=_COUNT, known=_COUNT, cause=_or_null(_TEXT), text=_TEXT
    ),
}
"""By the command's words."""
