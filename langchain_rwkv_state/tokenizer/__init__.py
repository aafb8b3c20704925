"""Turns text into token ids and back, by two libraries, and streams whole characters.

It knows nothing of messages or models. A token may hold half a character, so what is decoded
piecewise goes through bytes (`StreamDecoder`). Text that spells a special token, such as
``<|endoftext|>``, is encoded as ordinary text: only the template and the engine may speak of
special ids.
"""

from langchain_rwkv_state.tokenizer._json import JsonTokenizer
from langchain_rwkv_state.tokenizer._load import load_tokenizer, tokenizer_beside
from langchain_rwkv_state.tokenizer._port import StreamDecoder, Tokenizer, well_formed
from langchain_rwkv_state.tokenizer._world import WorldTokenizer

__all__ = [
    "JsonTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WorldTokenizer",
    "load_tokenizer",
    "tokenizer_beside",
    "well_formed",
]
