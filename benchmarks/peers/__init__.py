"""Contenders of `benchmarks.speed`: programs of others, and the bare matrix products.

Each module is a program that answers tasks (`served`) and needs nothing of this project but that
module, so that it runs with an interpreter that has only the peer. The easy mistake is to import
`torch` or a peer at the top of `served`: not every interpreter here has them.
"""
