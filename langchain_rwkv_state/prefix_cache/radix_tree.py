"""Keeps prompts as paths of a compressed radix tree over token ids, with values on them.

Pure: a value is whatever the caller keeps (integers in tests), a root is any key that tells trees
apart, and nothing here knows sizes, times or models. Paths outlive their values, so that the tree
can say where two prompts part and why a value is gone. A state stands for the whole path to its
node, so only nodes count.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")

_WIDTH = 4  # bytes of an id
_DEFAULT_LIMIT = 4_000_000  # ids on all paths: 16 MB
_DEFAULT_PATHS = 20_000  # without values; a short one takes 470 bytes, most of them its nodes'


def pack(ids: Sequence[int]) -> bytes:
    """Returns ids as the bytes that the tree compares, four each.

    Example:
        >>> len(pack([1, 70_000]))
        8
    """
    return array("I", ids).tobytes()


def unpack(key: bytes) -> tuple[int, ...]:
    """Returns the ids that `pack` packed."""
    ids = array("I")
    ids.frombytes(key)
    return tuple(ids)


class Node(Generic[V]):
    """One place on a path.

    Attributes:
        edge: Ids from the parent to here, packed.
        depth: Number of ids from the root to here.
        parent: The node above; ``None`` for a root, and for a node that was taken out.
        children: By their first id, packed.
        value: What is kept here.
        gone: Why nothing is kept here any more.
    """

    __slots__ = ("children", "depth", "edge", "gone", "parent", "root", "value")

    def __init__(self, edge: bytes, depth: int, parent: Node[V] | None, root: Hashable) -> None:
        self.edge = edge
        self.depth = depth
        self.parent = parent
        self.root = root
        self.children: dict[bytes, Node[V]] = {}
        self.value: V | None = None
        self.gone: str | None = None

    def key(self) -> bytes:
        """Returns the packed ids from the root to here."""
        edges: list[bytes] = []
        node: Node[V] | None = self
        while node is not None:
            edges.append(node.edge)
            node = node.parent
        return b"".join(reversed(edges))

    def above(self) -> Iterator[Node[V]]:
        """Yields the nodes between here and the root, the nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


@dataclass(frozen=True)
class Path(Generic[V]):
    """What the tree knows of a prompt.

    Attributes:
        nodes: The nodes that the prompt passes, from the root on, with a value or without.
        known: Number of the prompt's ids that lie on some path.
    """

    nodes: tuple[Node[V], ...]
    known: int

    def with_values(self) -> list[Node[V]]:
        """Returns the nodes with a value, the deepest first."""
        return [node for node in reversed(self.nodes) if node.value is not None]


class RadixTree(Generic[V]):
    """Paths of token ids below any number of roots, with values at nodes.

    Args:
        limit: At most so many ids on all paths; beyond it, paths without values are forgotten,
            the longest unused first.
        paths: At most so many paths without values, likewise.

    Example:
        >>> tree = RadixTree[int]()
        >>> _ = tree.put("root", pack([1, 2]), 12)
        >>> _ = tree.put("root", pack([1, 2, 3, 4]), 1234)
        >>> [node.value for node in tree.find("root", pack([1, 2, 3])).with_values()]
        [12]
    """

    def __init__(self, limit: int = _DEFAULT_LIMIT, *, paths: int = _DEFAULT_PATHS) -> None:
        self._limit = limit
        self._paths = paths
        self._roots: dict[Hashable, Node[V]] = {}
        self._idle: OrderedDict[Node[V], None] = OrderedDict()  # leaves without a value
        self._n_ids = 0

    @property
    def n_ids(self) -> int:
        """Number of ids on all paths."""
        return self._n_ids

    @property
    def roots(self) -> tuple[Hashable, ...]:
        """Keys of the trees that hold something."""
        return tuple(self._roots)

    def nodes(self, root: Hashable | None = None) -> Iterator[Node[V]]:
        """Yields all nodes but the roots, of one tree or of all, parents before children."""
        tops = self._roots.values() if root is None else [self._roots[root]]
        stack = [child for top in tops for child in top.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def find(self, root: Hashable, key: bytes) -> Path[V]:
        """Returns what is known of a prompt; changes nothing."""
        top = self._roots.get(root)
        if top is None:
            return Path((), 0)
        nodes, at, _ = self._walk(top, key)
        return Path(tuple(nodes), at // _WIDTH)

    def put(self, root: Hashable, key: bytes, value: V) -> Node[V]:
        """Keeps a value at the end of a path, in place of one that may be there.

        Raises:
            ValueError: The path is empty: at a root there is nothing to save.
        """
        if not key:
            raise ValueError("A value needs a path of at least one id.")
        node = self._reach(root, key)
        node.value, node.gone = value, None
        self._idle.pop(node, None)
        self._shrink()
        return node

    def note(self, root: Hashable, key: bytes) -> int | None:
        """Adds a path without a value.

        Returns:
            The depth at which it parts from what was known, ``None`` where it shares nothing with
            it, or is part of it or it a part of this.
        """
        top = self._roots.get(root)
        parts = None
        if top is not None:
            nodes, at, inside = self._walk(top, key)
            # It goes on, and so does what was known.
            if 0 < at < len(key) and (inside or nodes[-1].children):
                parts = at // _WIDTH
        if key:
            node = self._reach(root, key)
            if node.value is None and not node.children:
                self._idle[node] = None
                self._idle.move_to_end(node)
            self._shrink()
        return parts

    def drop(self, node: Node[V], reason: str) -> None:
        """Takes a node's value away; its path stays, with the reason, until there is no room."""
        if node.value is None:
            return
        node.value, node.gone = None, reason
        if not node.children:
            self._idle[node] = None
        self._shrink()

    def forget(self, node: Node[V]) -> None:
        """Takes a node's value away, and every path that leads to nothing else."""
        node.value = node.gone = None
        if not node.children:
            self._cut(node)
        else:
            self._join(node)

    # -- inside ------------------------------------------------------------------------------

    def _walk(self, top: Node[V], key: bytes) -> tuple[list[Node[V]], int, Node[V] | None]:
        """Follows a path: nodes passed, bytes matched, and the node whose edge it ends inside."""
        nodes: list[Node[V]] = []
        node, at = top, 0
        while at < len(key):
            child = node.children.get(key[at : at + _WIDTH])
            if child is None:
                break
            if not key.startswith(child.edge, at):
                return (
                    nodes,
                    at + _WIDTH * common_ids(child.edge, key[at : at + len(child.edge)]),
                    child,
                )
            at += len(child.edge)
            nodes.append(child)
            node = child
        return nodes, at, None

    def _reach(self, root: Hashable, key: bytes) -> Node[V]:
        """Returns the node at the end of a path, made where it is missing."""
        top = self._roots.get(root)
        if top is None:
            top = self._roots[root] = Node(b"", 0, None, root)
        nodes, at, inside = self._walk(top, key)
        node = nodes[-1] if nodes else top
        if inside is not None:
            node = self._split(inside, at // _WIDTH)
        if at < len(key):
            leaf = Node(key[at:], len(key) // _WIDTH, node, root)
            node.children[key[at : at + _WIDTH]] = leaf
            self._idle.pop(node, None)
            self._n_ids += len(leaf.edge) // _WIDTH
            node = leaf
        return node

    def _split(self, node: Node[V], depth: int) -> Node[V]:
        """Puts a node on the edge above another, and returns it."""
        parent = node.parent
        assert parent is not None  # noqa: S101 # roots have no edge
        cut = (depth - parent.depth) * _WIDTH
        middle = Node(node.edge[:cut], depth, parent, node.root)
        parent.children[node.edge[:_WIDTH]] = middle
        node.edge, node.parent = node.edge[cut:], middle
        middle.children[node.edge[:_WIDTH]] = node
        return middle

    def _shrink(self) -> None:
        while self._idle and (self._n_ids > self._limit or len(self._idle) > self._paths):
            self._cut(self._idle.popitem(last=False)[0])

    def _cut(self, node: Node[V]) -> None:
        """Takes a leaf out, and what then leads nowhere."""
        while True:
            self._idle.pop(node, None)
            parent = node.parent
            if parent is None:
                self._roots.pop(node.root, None)
                return
            del parent.children[node.edge[:_WIDTH]]
            self._n_ids -= len(node.edge) // _WIDTH
            node.parent = None
            if parent.value is not None:
                return
            if parent.children:
                self._join(parent)
                return
            node = parent

    def _join(self, node: Node[V]) -> None:
        """Takes a node out that stands for nothing on the way to its only child."""
        parent = node.parent
        if parent is None or node.value is not None or node.gone or len(node.children) != 1:
            return
        (child,) = node.children.values()
        child.edge, child.parent = node.edge + child.edge, parent
        parent.children[child.edge[:_WIDTH]] = child
        node.parent = None


def common_ids(one: bytes, other: bytes) -> int:
    """Returns with how many ids two packed prompts begin alike.

    Example:
        >>> common_ids(pack([1, 2, 3]), pack([1, 2, 4]))
        2
    """
    low, high = 0, min(len(one), len(other)) // _WIDTH
    while low < high:  # one comparison of a half is faster than a loop over ids
        middle = (low + high + 1) // 2
        if one[low * _WIDTH : middle * _WIDTH] == other[low * _WIDTH : middle * _WIDTH]:
            low = middle
        else:
            high = middle - 1
    return low
