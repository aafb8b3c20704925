"""What people do to states and models by hand; no answer needs anything of it.

The functions are public under `langchain_rwkv_state.state` and `langchain_rwkv_state.runtime`.
"""
