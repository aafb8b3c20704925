"""Runs the contenders of `benchmarks.speed`: programs of others, and the bare matrix products.

Each module is a program that answers tasks (`served`) and needs nothing of this project but that
module, so that it runs with an interpreter that has only the peer. `served` imports neither `torch`
nor a peer at its top, since not every interpreter here has them.
"""
