"""Runs the program ``rwkv-state``, also as ``python -m langchain_rwkv_state``.

It hears Ctrl-C before it imports anything. The commands are imported afterwards: a key that is
pressed meanwhile must be no traceback.
"""

from __future__ import annotations

from langchain_rwkv_state import _stopping as stopping


def main() -> None:
    """Runs the command line."""
    stopping.listen()
    from langchain_rwkv_state.cli import main as run

    run()


if __name__ == "__main__":
    main()
