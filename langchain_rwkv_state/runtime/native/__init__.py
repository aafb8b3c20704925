"""Runs RWKV-7 for many conversations at once, in PyTorch and in one compiled file."""
