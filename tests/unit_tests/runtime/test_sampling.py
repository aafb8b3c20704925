"""The random bits of choices: by key and number alone, and none of them another's."""

from __future__ import annotations

import numpy as np

from langchain_rwkv_state.runtime.sampling import DRAW, bits_of, increments, mixed


def test_mixed_is_splitmix64() -> None:
    """The first numbers of the generator that its authors publish, from the state 0."""
    first = [mixed(number * DRAW % 2**64) for number in (1, 2, 3)]
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_bits_are_those_of_the_key_and_the_number() -> None:
    found = {bits_of(key, number) for key in range(50) for number in range(50)}
    assert len(found) == 50 * 50
    assert all(0 <= bits < 2**64 for bits in found)
    assert bits_of(2**64 - 1, 10**6) == bits_of(2**64 - 1, 10**6)


def test_no_draw_of_a_choice_is_one_of_another() -> None:
    drawn = [
        mixed((bits_of(1, number) + draw * DRAW) % 2**64)
        for number in range(200)
        for draw in range(1, 50)
    ]
    assert len(set(drawn)) == len(drawn)


def test_each_bit_is_set_half_of_the_time() -> None:
    words = np.array([bits_of(3, number) for number in range(4_000)], dtype=np.uint64)
    shares = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert abs(shares - 0.5).max() < 0.04


def test_digits_and_blanks_add_nothing() -> None:
    pieces = [b"a", b"7", b" ", b"", b"42", b"12", "é".encode()]
    assert increments(pieces).tolist() == [1, 0, 0, 0, 1, 0, 1]
