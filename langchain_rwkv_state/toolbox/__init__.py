"""Does to states and models what people do by hand; no answer needs anything of it.

What is done to states is public under `langchain_rwkv_state.state`, and to models under
`langchain_rwkv_state.runtime`. Two modules are public by themselves: `recall`, and `reference`, the
formulas to be read.
"""
