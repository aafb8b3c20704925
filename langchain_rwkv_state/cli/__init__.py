"""The command line `rwkv-state`: talk to a model, and look after its sessions and its cache.

Commands are thin: they read options, call the package and print. The easy mistake is to import
PyTorch at the top of a module here: ``--help`` must not wait for it.
"""

from langchain_rwkv_state.cli.app import app, main

__all__ = ["app", "main"]
