"""Grammars: what an answer can be held to, such as JSON of a schema, a pattern, a choice."""
