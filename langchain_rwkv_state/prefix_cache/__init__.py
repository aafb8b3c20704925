"""The prefix cache: states of what was read before, so that no chain reads it again."""
