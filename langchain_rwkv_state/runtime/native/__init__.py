"""RWKV-7 for many conversations at once: our own runtime, in PyTorch and in one compiled file."""
