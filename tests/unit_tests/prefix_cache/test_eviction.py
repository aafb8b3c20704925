import random
from collections import OrderedDict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from langchain_rwkv_state.prefix_cache.eviction import GreedyDual, Tier, score


class TestRanks:
    def test_the_least_worth_goes_first(self):
        ranks = GreedyDual[str]()
        for item, value in (("b", 2.0), ("c", 3.0), ("a", 1.0)):
            ranks.touch(item, value)
        assert [ranks.take() for _ in range(4)] == ["a", "b", "c", None]

    def test_of_equals_the_one_unused_for_longest(self):
        ranks = GreedyDual[str]()
        for item in "abcab":
            ranks.touch(item, 1.0)
        assert [ranks.take() for _ in range(3)] == ["c", "a", "b"]

    def test_what_nobody_uses_is_overtaken_in_time(self):
        ranks = GreedyDual[object]()
        ranks.touch("once precious", 50.0)
        taken: list[object] = []
        for number in range(200):
            ranks.touch(number, 1.0)
            if len(ranks) > 2:
                taken.append(ranks.take())
        assert "once precious" in taken

    def test_the_heap_does_not_grow_with_uses(self):
        ranks = GreedyDual[str]()
        for number in range(10_000):
            ranks.touch("ab"[number % 2], 1.0)
        assert len(ranks._heap) < 50

    def test_worth_is_tokens_saved_per_byte(self):
        assert score(100, 1, 10) == 2 * score(50, 1, 10) == 2 * score(100, 1, 20)


class AgainstADictionary(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.tier = Tier[int, str](budget=100)
        self.held: dict[int, int] = {}
        self.pinned: set[int] = set()

    @rule(key=st.integers(0, 8), size=st.integers(0, 110), value=st.floats(0, 9), pin=st.booleans())
    def put(self, key, size, value, pin):
        others = sum(self.held[k] for k in self.pinned if k != key)
        evicted = self.tier.put(key, str(key), size, score=value, pinned=pin)
        assert (evicted is None) == (size > 100 - others)
        if evicted is not None:
            self.held[key] = size
            self.pinned.discard(key)
            if pin:
                self.pinned.add(key)
            for gone, text in evicted:
                assert text == str(gone)
                assert gone not in self.pinned
                del self.held[gone]

    @rule(key=st.integers(0, 8))
    def remove(self, key):
        assert self.tier.remove(key) == (str(key) if key in self.held else None)
        self.held.pop(key, None)
        self.pinned.discard(key)

    @rule(key=st.integers(0, 8), pin=st.booleans())
    def pin(self, key, pin):
        if pin:
            self.tier.pin(key)
            self.pinned |= {key} & set(self.held)
        else:
            self.tier.unpin(key, 1.0)
            self.pinned.discard(key)

    @invariant()
    def never_above_the_budget(self):
        assert self.tier.nbytes == sum(self.held.values()) <= 100
        assert len(self.tier) == len(self.held)
        assert all(key in self.tier for key in self.held)
        assert self.tier.fits(100 - sum(self.held[k] for k in self.pinned))


TestTierAgainstADictionary = AgainstADictionary.TestCase


def test_tokens_hit_are_more_than_with_plain_lru():
    """A Zipf trace over prompts of many lengths, each with a question that never comes again."""
    rng = random.Random(0)
    lengths = [rng.randrange(20, 1_000) for _ in range(200)]
    weights = [1 / (rank + 1) for rank in range(200)]
    trace = rng.choices(range(200), weights, k=2_000)

    tier, uses, ours = Tier[object, int](budget=40), dict.fromkeys(range(200), 0), 0
    lru, theirs = OrderedDict[object, None](), 0
    for number, prompt in enumerate(trace):
        uses[prompt] += 1
        if prompt in tier:
            ours += lengths[prompt]
            tier.touch(prompt, score(lengths[prompt], uses[prompt], 1))
        else:
            tier.put(prompt, 0, 1, score=score(lengths[prompt], uses[prompt], 1))
        tier.put(("question", number), 0, 1, score=score(20, 1, 1))
        theirs += lengths[prompt] if prompt in lru else 0
        for key in (prompt, ("question", number)):
            lru[key] = None
            lru.move_to_end(key)
            while len(lru) > 40:
                lru.popitem(last=False)
    assert ours > 1.2 * theirs
