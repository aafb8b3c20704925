"""The tree against a dictionary of all prefixes."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from langchain_rwkv_state.prefix_cache.radix_tree import RadixTree, pack, unpack

keys = st.lists(st.integers(0, 3), min_size=1, max_size=8).map(tuple)
roots = st.sampled_from(["a", "b"])


class AgainstADictionary(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.tree = RadixTree[int]()
        self.kept: dict[tuple, int] = {}
        self.paths: set[tuple] = set()
        self.count = 0

    def node(self, root, ids):
        return next(n for n in self.tree.find(root, pack(ids)).nodes if n.depth == len(ids))

    @rule(root=roots, ids=keys)
    def put(self, root, ids):
        self.count += 1
        node = self.tree.put(root, pack(ids), self.count)
        assert unpack(node.key()) == ids
        self.kept[root, ids] = self.count
        self.paths.add((root, ids))

    @rule(root=roots, ids=keys)
    def note(self, root, ids):
        known = [path for where, path in self.paths if where == root]
        common = max((shared(path, ids) for path in known), default=0)
        goes_on = any(len(path) > common and shared(path, ids) == common for path in known)
        expected = common if 0 < common < len(ids) and goes_on else None
        assert self.tree.note(root, pack(ids)) == expected
        self.paths.add((root, ids))

    @rule(data=st.data(), reason=st.sampled_from(["evicted", "expired"]))
    def drop(self, data, reason):
        if self.kept:
            root, ids = data.draw(st.sampled_from(sorted(self.kept)))
            node = self.node(root, ids)
            self.tree.drop(node, reason)
            assert node.gone == reason
            del self.kept[root, ids]

    @rule(root=roots, ids=keys)
    def find(self, root, ids):
        path = self.tree.find(root, pack(ids))
        expected = [
            self.kept[root, ids[:end]]
            for end in range(len(ids), 0, -1)
            if (root, ids[:end]) in self.kept
        ]
        assert [node.value for node in path.with_values()] == expected
        known = [path for where, path in self.paths if where == root]
        assert path.known == max((shared(path, ids) for path in known), default=0)

    @invariant()
    def holds_what_the_dictionary_holds(self):
        found = {
            (node.root, unpack(node.key())): node.value
            for node in self.tree.nodes()
            if node.value is not None
        }
        assert found == self.kept
        assert self.tree.n_ids == sum(len(node.edge) // 4 for node in self.tree.nodes())
        for node in self.tree.nodes():
            assert node.edge
            assert all(child.parent is node for child in node.children.values())


def shared(one, other) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.lists(keys, min_size=1, max_size=30), st.integers(0, 10), st.data())
def test_forgetting_values_leaves_no_path_behind(paths, limit, data):
    tree = RadixTree[int]()
    for number, ids in enumerate(paths):
        tree.put("root", pack(ids), number)
    left = list(dict.fromkeys(paths))
    while left:
        ids = data.draw(st.sampled_from(left))
        left.remove(ids)
        tree.forget(tree.find("root", pack(ids)).with_values()[0])
        assert {unpack(n.key()) for n in tree.nodes() if n.value is not None} == set(left)
        assert all(n.value is not None or len(n.children) > 1 for n in tree.nodes())
    assert tree.n_ids == 0
    assert tree.roots == ()


@given(st.lists(keys, max_size=30), st.integers(0, 20))
def test_paths_without_values_are_bounded(paths, limit):
    tree = RadixTree[int](limit=limit)
    for ids in paths:
        tree.note("root", pack(ids))
        assert tree.n_ids <= limit


def test_short_paths_without_values_are_bounded_by_their_number():
    tree = RadixTree[int](paths=10)
    for number in range(100):
        tree.note("root", pack([number, 1]))
        assert sum(1 for _ in tree.nodes()) <= 10
    assert tree.find("root", pack([99, 1])).known == 2
    assert tree.find("root", pack([0, 1])).known == 0


def test_values_are_never_forgotten_for_want_of_room():
    tree = RadixTree[int](limit=3)
    tree.put("root", pack([1, 2, 3, 4]), 1)
    tree.note("root", pack([5, 6]))
    assert tree.find("root", pack([1, 2, 3, 4])).with_values()[0].value == 1
    assert tree.find("root", pack([5, 6])).known == 0


def test_the_path_unused_for_longest_is_forgotten_first():
    tree = RadixTree[int](limit=4)
    for ids in ([1, 1], [2, 2], [1, 1], [3, 3]):
        tree.note("root", pack(ids))
    assert tree.find("root", pack([1, 1])).known == 2
    assert tree.find("root", pack([2, 2])).known == 0


def test_an_empty_path_holds_nothing():
    with pytest.raises(ValueError, match="at least one"):
        RadixTree[int]().put("root", b"", 1)


def test_cost_does_not_grow_with_the_number_of_entries():
    def per_lookup(count):
        tree, rng = RadixTree[int](limit=10**9), random.Random(0)
        prompts = [pack([rng.randrange(65_000) for _ in range(200)]) for _ in range(count)]
        for number, key in enumerate(prompts):
            tree.put("root", key, number)
        times = []
        for key in prompts[:100]:
            start = time.perf_counter()
            tree.find("root", key)
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    assert per_lookup(5_000) < 20 * per_lookup(50)  # a search through all would take 100 times
