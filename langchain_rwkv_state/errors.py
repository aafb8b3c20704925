"""Names every error this package raises on purpose, in one tree under `RWKVStateError`.

This module knows nothing of what fails: it only names it, so that an application can catch one
root. `StateNotFound` does not cover all that is gone: a state that ran out of its time to live is
`StateExpired`, and a session that did so is simply new again.
"""


class RWKVStateError(Exception):
    """Root of every error of this package."""


class StateNotFound(RWKVStateError):
    """No state is stored under this reference, and none is known to have expired."""


class StateExpired(RWKVStateError):
    """The state was stored once and its time to live has run out."""


class StateMismatch(RWKVStateError):
    """A state was offered to a model (or joined with a state) that it does not belong to."""


class StateCorrupt(RWKVStateError):
    """Stored bytes are not a whole, unchanged state of this format."""


class SessionConflict(RWKVStateError):
    """Somebody else moved the session's head since it was read."""


class StoreFull(RWKVStateError):
    """The store's size limit or the disk leaves no room; what was stored before is unharmed."""


class StoreError(RWKVStateError):
    """The store itself is unusable: foreign, damaged, closed or gone from the disk."""


class ModelLoadError(RWKVStateError):
    """A model, its tokenizer or its strategy could not be loaded."""


class EngineError(RWKVStateError):
    """The engine stopped, or one of its requests could not be served."""


class EngineBusy(EngineError):
    """As many requests wait for the engine as it lets wait; this one was not taken."""


class DeadlineExceeded(EngineError):
    """A request was not served within its deadline."""


class SchemaError(RWKVStateError, ValueError):
    """A JSON schema has what an answer cannot be held to while it is decoded."""


class GrammarError(EngineError, SchemaError):
    """An answer that was begun cannot be held to its schema, which asks for too much at once."""


class MarkerError(RWKVStateError, ValueError):
    """A state marker among the messages is malformed, doubled or out of place."""


class UnsupportedContentError(RWKVStateError, ValueError):
    """A message holds content, such as an image, that a text model cannot read."""
