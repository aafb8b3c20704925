"""Names the model, tokenizer and template that a state belongs to, as one short string.

A fingerprint is text, made of four parts that can be compared one by one, so that a refusal can say
what differs. A runtime takes tokens and compares `weights` alone; a chat model compares all.
"""

from __future__ import annotations

from typing import NamedTuple

from langchain_rwkv_state.errors import StateMismatch

_NAMES = {
    "weights": "weights",
    "compute": "compute dtype",
    "tokenizer": "tokenizer",
    "template": "chat template",
}


class Fingerprint(NamedTuple):
    """The parts of a fingerprint; none holds a slash.

    Attributes:
        weights: RWKV version and a digest of the tensors' names, shapes, dtypes and samples.
        compute: The compute dtypes, such as ``fp32`` or ``fp16*10+fp32``.
        tokenizer: Digest of the tokenizer, ``-`` where the caller deals in token ids.
        template: Name or digest of the template, ``-`` likewise.
    """

    weights: str
    compute: str
    tokenizer: str = "-"
    template: str = "-"

    def __str__(self) -> str:
        """Returns the one-string form."""
        return "/".join(self)

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Reads the one-string form.

        Raises:
            StateMismatch: The text is not a fingerprint.
        """
        parts = text.split("/")
        if len(parts) != len(cls._fields) or not all(parts):
            raise StateMismatch(f"{text!r} is not the fingerprint of a model.")
        return cls(*parts)

    def require(self, found: str, *, parts: tuple[str, ...] = tuple(_NAMES)) -> None:
        """Checks that a state's fingerprint agrees with this one.

        Args:
            found: The state's fingerprint.
            parts: Which parts must agree.

        Raises:
            StateMismatch: A part differs; the message names it and both values.
        """
        other = Fingerprint.parse(found)
        for part in parts:
            mine, theirs = getattr(self, part), getattr(other, part)
            if mine != theirs:
                raise StateMismatch(
                    f"The state was made with another {_NAMES[part]}: it belongs to {found!r}, "
                    f"this model is {str(self)!r}. Load the model that made it, or start anew."
                )
