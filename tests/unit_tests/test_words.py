"""Texts that somebody typed, or a model wrote, do no harm where they are shown."""

import sys
import unicodedata

import pytest

from langchain_rwkv_state._text import in_one_line, plain

_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_MARKS = {0x200E, 0x200F, 0x061C, 0xFEFF, 0x2028, 0x2029, 0x2060, 0x180E, 0xFFF9, 0xE0041}


def test_no_character_that_a_terminal_obeys_is_shown():
    everything = [chr(code) for code in range(sys.maxunicode + 1)]
    shown = plain("".join(everything))
    assert len(shown) == len(everything)
    for before, after in zip(everything, shown, strict=True):
        kind = unicodedata.category(before)
        if before in "\t\n":
            assert after == before
        elif (
            kind in ("Cc", "Cs", "Zl", "Zp")
            or ord(before) in _MARKS
            or unicodedata.bidirectional(before) in _TURNING
        ):
            assert after == "\ufffd", hex(ord(before))
        elif kind != "Cf":
            assert after == before, hex(ord(before))


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a joiner
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # one family
        "\u0600\u0661\u0662",  # an Arabic number with its sign
        "Donau\u00addampf",
        "\u05e9\u05dc\u05d5\u05dd, \u65e5\u672c",
    ],
)
def test_what_languages_need_is_left_as_it_is(text):
    assert plain(text) == text


def test_a_name_stands_in_one_line_and_turns_nothing():
    assert in_one_line("a\r\n\tb\u202ec\u200fd\u061ce") == "a b\ufffdc\ufffdd\ufffde"
