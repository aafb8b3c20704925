"""Writes grammars that an answer can be held to: JSON of a schema, a pattern, a choice."""
