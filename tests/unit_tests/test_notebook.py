"""What a notebook and a prompt show: whole HTML, all text escaped, and one short line."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langchain_rwkv_state import (
    RWKVLLM,
    ChatRWKV,
    DiskStateStore,
    MemoryStateStore,
    PrefixStateCache,
    StateLayout,
)
from langchain_rwkv_state import state as states
from langchain_rwkv_state._markup import MOST_ROWS
from langchain_rwkv_state.prompt.markers import message_to_json
from langchain_rwkv_state.state import Distance
from langchain_rwkv_state.store.events import snapshot_of
from langchain_rwkv_state.toolbox.half_life import half_life
from langchain_rwkv_state.toolbox.recall.result import Point, Recall, Section, Series
from tests.helpers.states import random_state

EVIL = "<script>alert('x')</script> & \"y\"\n\x1b[31m"
A, B = random_state([1]), random_state([2])


class Seen(HTMLParser):
    """Reads HTML; every tag must be closed, in its turn, and be one that a table is made of."""

    TAGS = frozenset({"table", "caption", "thead", "tbody", "tr", "th", "td", "p"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.TAGS
        assert {name for name, _ in attrs} <= {"scope", "colspan"}  # no style, no script
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)


def seen(value: Any) -> Seen:
    return Seen(value._repr_html_())


@pytest.fixture(params=["memory", "disk"])
def a_store(request, tmp_path):
    made = MemoryStateStore() if request.param == "memory" else DiskStateStore(tmp_path / "a")
    with made as store:
        yield store


class TestAStore:
    def test_is_a_table_of_its_sessions(self, a_store):
        a_store.begin("bob", A, ttl="1h")
        a_store.append_unread("ada", [message_to_json(HumanMessage("Hi."))], ttl=math.inf)
        head, ada, bob = seen(a_store).rows
        assert head[:4] == ["session", "model", "turns", "tokens"]
        assert (*ada[:3], ada[-3], ada[-1]) == ("ada", "-", "0", "never", "1")
        assert bob[:4] == ["bob", a_store.session("bob").model, "1", "1"]
        assert len(head) == len(ada) == len(bob)

    def test_shows_names_as_they_are_and_no_markup(self, a_store):
        a_store.begin(EVIL, A)
        name = seen(a_store).rows[1][0]
        assert name == "<script>alert('x')</script> & \"y\" \ufffd[31m"

    def test_of_many_sessions_shows_some_and_counts_the_others(self, a_store):
        for number in range(MOST_ROWS + 3):
            a_store.begin(f"s{number:03}", A)
        looked = []
        session = a_store.session

        def noted(name: str, **options: Any) -> Any:
            looked.append(name)
            return session(name, **options)

        a_store.session = noted
        found = seen(a_store)
        assert len(looked) == MOST_ROWS
        assert len(found.rows) == 1 + MOST_ROWS + 1
        assert found.rows[-1] == ["and 3 more"]

    def test_is_no_use_of_its_sessions(self, a_store, monkeypatch):
        asked = []
        session = a_store.session
        a_store.begin("bob", A)

        def noted(name: str, renew: bool = True) -> Any:
            asked.append(renew)
            return session(name)

        monkeypatch.setattr(a_store, "session", noted)
        a_store._repr_html_()
        assert asked == [False]

    def test_that_is_closed_says_so(self, a_store):
        a_store.close()
        assert "closed" in seen(a_store).text

    def test_that_is_damaged_shows_what_it_can(self, a_store, monkeypatch):
        a_store.begin("bob", A)
        a_store.begin("eve", A)
        session = a_store.session

        def damaged(name: str, **options: Any) -> Any:
            if name == "bob":
                raise RuntimeError("rot")
            return session(name, **options)

        monkeypatch.setattr(a_store, "session", damaged)
        _, bob, eve = seen(a_store).rows
        assert bob[:2] == ["bob", "damaged"]
        assert (eve[0], eve[2]) == ("eve", "1")


class TestSessions:
    def test_one_shows_how_it_stands(self, chat, store):
        bob = chat.with_session(EVIL)
        assert "has not begun" in seen(bob).text
        bob.invoke("One.")
        found = dict(seen(bob).rows)
        assert found["turns"] == "1"
        assert found["store"] == "MemoryStateStore(open)"
        assert seen(bob.bind(max_tokens=2)).rows == seen(bob).rows
        store.close()
        assert "closed" in seen(bob).text

    def test_all_are_their_stores(self, chat):
        chat.with_session("bob").invoke("One.")
        assert [row[0] for row in seen(chat.with_sessions()).rows] == ["session", "bob"]


class TestStates:
    def test_a_state_shows_its_size_and_model(self):
        found = dict(seen(A).rows)
        assert found["model"] == "RWKV-7 2x64"
        assert found["tokens"] == "1"
        strange = dict(seen(A.with_fingerprint(EVIL)).rows)
        assert strange["fingerprint"].startswith("<script>")

    def test_a_layout_lists_its_tensors(self):
        layout = StateLayout.of(7, n_layer=40, n_embd=128, head_size=64)
        found = seen(layout)
        assert found.rows[2] == ["blocks.0.att_kv", "2 x 64 x 64", "fp32", str(4 * 2 * 64 * 64)]
        assert found.rows[-1] == [f"and {3 * 40 - MOST_ROWS} more"]

    def test_a_distance_and_a_diff_are_one_table(self):
        apart = states.distance(A, B)
        assert seen(apart).rows == seen(states.diff(A, B, "l2")).rows
        head, whole, *layers = seen(apart).rows
        assert head == ["layer", "whole", "att_x_prev", "att_kv", "ffn_x_prev"]
        assert whole[:2] == ["all", f"{apart:.4g}"]
        assert [row[0] for row in layers] == ["0", "1"]

    def test_an_inspection_lists_tensors_below_its_verdict(self):
        found = seen(states.inspect(A))
        assert states.inspect(A).verdict in found.text
        assert [row[0] for row in found.rows[1:]] == list(A)


def test_recall_has_a_table_for_each_section():
    points = (Point("exact", 3, 4), Point("<int4>", 1, 4))
    section = Section("codec", EVIL, "codec", (Series("state", points), Series("text", points)))
    found = seen(Recall("demo", "f", (section, section)))
    assert found.rows[:3] == [
        ["codec", "state", "text"],
        ["exact", "3 of 4 (75%)", "3 of 4 (75%)"],
        ["<int4>", "1 of 4 (25%)", "1 of 4 (25%)"],
    ]
    assert len(found.rows) == 6
    assert "Recall" in seen(Recall("demo", "f", ())).text


def test_a_prefix_cache_shows_what_it_holds():
    cache = PrefixStateCache(1_000_000)
    assert dict(seen(cache).rows)["states held"] == "0"
    cache.close()


class TestAShortLine:
    LAYOUT = StateLayout.of(7, n_layer=60, n_embd=128, head_size=64, shift_dtype="fp16")

    @pytest.mark.parametrize("make", [ChatRWKV, RWKVLLM])
    def test_of_a_model_says_what_was_set(self, make, tmp_path):
        name = make.__name__
        assert repr(make()) == f"{name}(model='demo', strategy='auto', store=None)"
        made = make(temperature=0.0, store=tmp_path, metadata={"by": "me"}, tags=["x"])
        shown = repr(made)
        for part in ("temperature=0.0", f"store={str(tmp_path)!r}", "{'by': 'me'}", "tags=['x']"):
            assert part in shown
        assert "max_tokens" not in shown

    def test_hides_a_salt(self):
        assert "secret" not in repr(ChatRWKV(cache_salt="secret"))

    def test_of_a_layout_tells_the_dtypes_of_shifts(self):
        assert repr(self.LAYOUT).endswith("head_size=64, shift_dtypes=(60 x 'fp16'))")
        mixed = StateLayout(7, 3, 64, 1, 64, ("fp32", "bf16", "bf16"))
        assert repr(mixed).endswith("(1 x 'fp32', 2 x 'bf16'))")

    def test_is_short_for_whatever_is_large(self, store):
        large = states.zero_state(self.LAYOUT, "model")
        store.begin("bob", A)
        found = states.inspect(large)
        values = [
            large,
            self.LAYOUT,
            found,
            found.tensors[1],
            states.calibrate([A, B]),
            states.distance(large, large),
            states.diff(large, large),
            states.head_maps(large)[0],
            states.motion(large, large, found),
            Distance("l2", 1.0, (1.0,) * 60, {}),
            store.session("bob"),
            snapshot_of(store, "bob"),
            half_life("demo"),
            Recall("demo", "f", (Section("a", "b", "c", ()),) * 100, {"all": list(range(100))}),
        ]
        for value in values:
            assert len(repr(value)) < 500, type(value)
            assert "\n" not in repr(value)
            assert "tensor(" not in repr(value)
