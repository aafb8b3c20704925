"""Measures and checks the runtime on a CUDA card, beside its peers: what `make gpu` runs.

Nothing here has figures of its own: on a machine without a card it says so and ends. See
`__main__` for the command, `parts` for what is done within which time, and `estimate` for the
arithmetic of what to expect, which needs no card.
"""
