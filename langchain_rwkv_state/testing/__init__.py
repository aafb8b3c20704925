"""Tests that a store of your own does what every store must: `StateStoreContract`, for pytest.

It is the suite that this package's stores pass. It needs pytest, which nothing else in the package
imports.
"""

import pytest

pytest.register_assert_rewrite("langchain_rwkv_state.testing.store_contract")

from langchain_rwkv_state.testing.states import SetClock, random_state  # noqa: E402 # see above
from langchain_rwkv_state.testing.store_contract import StateStoreContract  # noqa: E402

__all__ = ["SetClock", "StateStoreContract", "random_state"]
