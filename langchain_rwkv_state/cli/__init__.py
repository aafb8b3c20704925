"""The command line `rwkv-state`: talk to a model, and look after its sessions and its cache.

Commands are thin: they read options, call the package and print. No module here imports PyTorch at
its top: ``--help`` must not wait for it.
"""

from langchain_rwkv_state.cli.app import app, main

__all__ = ["app", "main"]
