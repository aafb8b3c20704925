"""Holds a short conversation of the kind that the demo model knows, as text and as the model's ids.

It is what is measured on where somebody asks for the demo model's figures and brings no text. A
test holds the two forms together.
"""

from __future__ import annotations

SAMPLE_TEXT = (
    "User: My name is Marlow and I live in Lisbon.\n\nAssistant: Nice to meet you, Marlow.\n\n"
    "User: What is my name?\n\nAssistant: Your name is Marlow."
)
"""Two turns of a conversation."""

SAMPLE_IDS = (
    *(271, 26, 351, 336, 272, 332, 324, 76, 337, 455, 273, 354, 329, 471, 257, 66, 321, 14),
    *(199, 199, 269, 26, 451, 363, 452, 292, 12, 332, 324, 76, 337, 14, 199, 199, 271, 26, 361),
    *(272, 301, 336, 31, 199, 199, 269, 26, 338, 336, 272, 332, 324, 76, 337, 14),
)
"""The same, as the demo model's tokenizer gives it."""
