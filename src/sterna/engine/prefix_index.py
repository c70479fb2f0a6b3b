"""The prefix tree: which KV blocks and state snapshots exist for which tokens. No tensors, no backend: ids only.

A hybrid model can continue from position p only if it has the keys and values of all tokens before p *and* the recurrent state after
exactly p tokens. The tree therefore carries both: every node stands for one KV block (up to ``block_size`` tokens) and holds
the snapshots taken at positions inside it. Physical blocks are never shared between nodes; two prompts that part inside a
block have two nodes whose common rows hold equal bits.

Namespaces (one per API key) have separate roots: nothing of one is visible to another, neither as a hit nor as a time.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

Tokens = tuple[int, ...]


class SnapshotKind(IntEnum):
    """Why a snapshot was taken; higher survives longer."""

    INTERVAL = 0
    DIVERGENCE = 1
    TURN_END = 2
    SYSTEM_END = 3


# How much a token of replay that a snapshot saves counts: every conversation starts from the end of system and tools.
KIND_WEIGHT = {
    SnapshotKind.INTERVAL: 0.25,
    SnapshotKind.DIVERGENCE: 1.0,
    SnapshotKind.TURN_END: 1.0,
    SnapshotKind.SYSTEM_END: 16.0,
}
MAIN_WEIGHT = 4.0


@dataclass(slots=True)
class Snapshot:
    """A stored recurrent state: ``slot`` is the owner's handle, ``position`` the number of tokens it has seen."""

    slot: int
    position: int
    kind: SnapshotKind
    used_at: int


@dataclass(slots=True)
class Node:
    """One KV block: the ``tokens`` stored in it and the ``block`` that stores them; the root has neither.

    ``chain`` identifies the whole prefix up to a full block; ``users`` counts running sequences that read the block.
    """

    tokens: Tokens
    block: int
    start: int
    parent: Node | None
    chain: int = 0
    main: bool = False
    used_at: int = 0
    users: int = 0
    children: list[Node] = field(default_factory=list)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Position after the last token of the node."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """What a prompt can reuse.

    ``num_cached`` tokens need not be computed: their rows lie in ``blocks`` (in order, the last one possibly partly filled and
    then to be copied before writing) and ``snapshot`` is the state after them. ``num_matched`` tokens were found in the tree:
    what lies between the two has keys and values but no state. ``divergence`` is (position, stored token, prompt token).
    """

    num_cached: int
    blocks: tuple[int, ...]
    snapshot: Snapshot | None
    num_matched: int
    divergence: tuple[int, int, int] | None
    evicted_at: int | None
    path: tuple[Node, ...] = ()

    def reason(self, prompt_tokens: int, token_text: Callable[[int], str] = str) -> str | None:
        """Why not more was reused, in words; ``None`` when nothing more was conceivable."""
        if self.num_cached >= prompt_tokens - 1:
            return None
        if self.evicted_at is not None and self.evicted_at > self.num_cached:
            return f"tokens up to {self.evicted_at} were cached but evicted to stay within the budget"
        if self.num_matched > self.num_cached:
            return f"no state snapshot between tokens {self.num_cached} and {self.num_matched}"
        if self.divergence is not None:
            position, stored, given = self.divergence
            return (
                f"differs from the cached prefix at token {position}: "
                f"cached {token_text(stored)}, prompt {token_text(given)}"
            )
        return None if self.num_cached else "nothing was cached yet"


@dataclass(slots=True)
class _Walk:
    """The way down the tree along a prompt, and the deepest snapshot seen: in ``holder``, below ``path[:depth]``."""

    path: list[Node] = field(default_factory=list)
    position: int = 0
    divergence: tuple[int, int, int] | None = None
    snapshot: Snapshot | None = None
    holder: Node = field(default_factory=lambda: Node((), -1, 0, None))
    depth: int = 0

    def consider(self, child: Node, limit: int) -> None:
        """Take the deepest snapshot of a node that is not beyond ``limit``; siblings may hold one at a shared position."""
        usable = (s for s in child.snapshots.values() if s.position <= limit)
        best = max(usable, key=lambda s: s.position, default=None)
        if best is not None and (self.snapshot is None or best.position > self.snapshot.position):
            self.snapshot, self.holder, self.depth = best, child, len(self.path)


class PrefixIndex:
    """The tree of all namespaces. The owner allocates blocks and snapshot slots; the index says which may go.

    ``release_block`` and ``release_snapshot`` are called for everything that leaves the tree.
    """

    def __init__(
        self,
        *,
        block_size: int,
        max_snapshots: int,
        release_block: Callable[[int], None],
        release_snapshot: Callable[[int], None],
        max_ghosts: int = 65_536,
    ) -> None:
        self.block_size = block_size
        self.max_snapshots = max_snapshots
        self.num_snapshots = 0
        self._release_block = release_block
        self._release_snapshot = release_snapshot
        self._roots: dict[str, Node] = {}
        self._clock = itertools.count(1)
        self._ghosts: dict[tuple[str, int], None] = {}
        self._max_ghosts = max_ghosts

    # lookup ----------------------------------------------------------------------------------------------------------
    def match(self, namespace: str, token_ids: Sequence[int]) -> PrefixMatch:
        """The longest reusable prefix, at most all tokens but the last: logits of the last one must be computed."""
        tokens = tuple(token_ids)
        walk = self._walk(namespace, tokens)
        now = next(self._clock)
        for node in walk.path:
            node.used_at = now
        num_cached, path = 0, tuple[Node, ...]()
        if walk.snapshot is not None:
            walk.snapshot.used_at = now
            num_cached, path = walk.snapshot.position, (*walk.path[: walk.depth], walk.holder)
        return PrefixMatch(
            num_cached=num_cached,
            blocks=tuple(node.block for node in path),
            snapshot=walk.snapshot,
            num_matched=walk.position,
            divergence=walk.divergence,
            evicted_at=self._evicted_at(namespace, tokens, walk.position),
            path=path,
        )

    def _walk(self, namespace: str, tokens: Tokens) -> _Walk:
        walk = _Walk()
        node = self._roots.get(namespace)
        while node is not None:
            best, most = None, -1
            for child in node.children:
                common = common_prefix(child.tokens, tokens[child.start : child.end])
                walk.consider(child, min(child.start + common, len(tokens) - 1))
                if common > most:
                    best, most = child, common
            if best is None or best.start == len(tokens):
                return walk
            walk.position = best.start + most
            if most < len(best.tokens) and walk.position < len(tokens):
                walk.divergence = (walk.position, best.tokens[most], tokens[walk.position])
            if most:
                walk.path.append(best)
            node = best if most == self.block_size else None
        return walk

    # growth ----------------------------------------------------------------------------------------------------------
    def insert(
        self,
        namespace: str,
        token_ids: Sequence[int],
        blocks: Sequence[int],
        *,
        main: bool = False,
        after: Sequence[Node] = (),
    ) -> tuple[list[Node], list[int]]:
        """Record computed tokens and the blocks that hold them; ``after`` are the full nodes of the sequence known already.

        Returns the nodes along the sequence and the given blocks that the tree did not take, because an equal block was there.
        A partly filled last node is extended in place when the new tokens continue it in the same physical block.
        """
        node = after[-1] if after else self._roots.setdefault(namespace, Node((), -1, 0, None))
        nodes: list[Node] = list(after)
        unused: list[int] = []
        now = next(self._clock)
        for index in range(len(after), len(blocks)):
            piece = tuple(token_ids[index * self.block_size : (index + 1) * self.block_size])
            if not piece:
                unused.extend(blocks[index:])
                break
            node = self._child(node, piece, blocks[index], index * self.block_size, unused)
            node.main = node.main or main
            node.used_at = now
            nodes.append(node)
            self._ghosts.pop((namespace, node.chain), None)
        return nodes, unused

    def _child(self, parent: Node, piece: Tokens, block: int, start: int, unused: list[int]) -> Node:
        for child in parent.children:
            if child.block == block:
                if child.tokens[: len(piece)] != piece and piece[: len(child.tokens)] != child.tokens:
                    raise AssertionError(f"block {block} was overwritten while the prefix tree holds it")
                child.tokens = max(child.tokens, piece, key=len)
                child.chain = hash((parent.chain, child.tokens))
                return self._merge(child, parent)
        for child in parent.children:
            if child.tokens[: len(piece)] == piece:
                unused.append(block)
                return child
            if piece[: len(child.tokens)] == child.tokens and child.users == 0:
                # The new block holds the same rows and more.
                self._release_block(child.block)
                child.tokens, child.block, child.chain = piece, block, hash((parent.chain, piece))
                return child
        child = Node(piece, block, start, parent, chain=hash((parent.chain, piece)))
        parent.children.append(child)
        return child

    def _merge(self, node: Node, parent: Node) -> Node:
        """A node that has grown to equal a sibling gives way to it, so that nothing is stored below two equal nodes."""
        twin = next((other for other in parent.children if other is not node and other.tokens == node.tokens), None)
        if twin is None or node.children:
            return node
        for position, snapshot in node.snapshots.items():
            if position in twin.snapshots:
                self._drop(snapshot)
            else:
                twin.snapshots[position] = snapshot
        node.snapshots.clear()
        parent.children.remove(node)
        self._release_block(node.block)
        return twin

    def add_snapshot(self, nodes: Sequence[Node], position: int, slot: int, kind: SnapshotKind) -> bool:
        """Attach a state taken after ``position`` tokens of the sequence that ``nodes`` describe.

        False when one was there or the budget is zero: the slot then stays with the caller.
        """
        node = next((n for n in reversed(nodes) if n.start < position <= n.end), None)
        if node is None:
            raise AssertionError(f"no block of the prefix tree covers position {position}")
        known = node.snapshots.get(position)
        if known is not None:
            known.kind = max(known.kind, kind)
            return False
        while self.num_snapshots >= self.max_snapshots:
            if not self.evict_snapshot():
                return False
        node.snapshots[position] = Snapshot(slot, position, kind, next(self._clock))
        self.num_snapshots += 1
        return True

    def take_snapshot(self, node: Node, snapshot: Snapshot) -> int:
        """Remove a snapshot without releasing its slot, which is returned."""
        del node.snapshots[snapshot.position]
        self.num_snapshots -= 1
        return snapshot.slot

    # eviction --------------------------------------------------------------------------------------------------------
    def pin(self, nodes: Sequence[Node]) -> None:
        """Keep nodes while a running sequence reads their blocks."""
        for node in nodes:
            node.users += 1

    def unpin(self, nodes: Sequence[Node]) -> None:
        """Undo one `pin`."""
        for node in nodes:
            node.users -= 1

    def evict_blocks(self, count: int, namespaces: Sequence[str] | None = None) -> int:
        """Drop the leaves that cost least to lose: side prefixes first, then the least recently used. Returns how many went.

        A node may go only when nothing continues it and no running sequence reads it.
        """
        heap = [_leaf_entry(node, name) for node, name in self._nodes(namespaces) if _is_free_leaf(node)]
        heapq.heapify(heap)
        dropped = 0
        while heap and dropped < count:
            *_, node, name = heapq.heappop(heap)
            parent = self._remove(node, name)
            dropped += 1
            if parent.parent is not None and _is_free_leaf(parent):
                heapq.heappush(heap, _leaf_entry(parent, name))
        return dropped

    def _remove(self, leaf: Node, namespace: str) -> Node:
        self._ghosts[(namespace, leaf.chain)] = None
        while len(self._ghosts) > self._max_ghosts:
            del self._ghosts[next(iter(self._ghosts))]
        for snapshot in leaf.snapshots.values():
            self._drop(snapshot)
        parent = leaf.parent
        assert parent is not None
        parent.children.remove(leaf)
        self._release_block(leaf.block)
        return parent

    def evict_snapshot(self, keep: Snapshot | None = None, below: float = math.inf) -> bool:
        """Drop the snapshot that saves least, but never ``keep``; False when none is worth less than ``below``.

        What a snapshot saves is the replay from the one before it. It counts less the farther it lies from the end of its
        branch, which thins old turns exponentially, and the longer its branch has not been used.
        """
        now = next(self._clock)
        best: tuple[float, Node, Snapshot] | None = None
        for node, snapshot, end, used_at in self._snapshots():
            if snapshot is keep:
                continue
            far, age = 1 + end - snapshot.position, 1 + now - max(used_at, snapshot.used_at)
            value = KIND_WEIGHT[snapshot.kind] * (MAIN_WEIGHT if node.main else 1.0)
            value *= self._gap(node, snapshot) / (far * age)
            if best is None or value < best[0]:
                best = (value, node, snapshot)
        if best is None or best[0] >= below:
            return False
        _, node, snapshot = best
        del node.snapshots[snapshot.position]
        self._drop(snapshot)
        return True

    def _snapshots(self) -> Iterator[tuple[Node, Snapshot, int, int]]:
        """Every snapshot with its node, the end of the longest branch through it and when that was last used."""
        order = [node for node, _ in self._nodes(None)]
        reach: dict[int, tuple[int, int]] = {}
        for node in reversed(order):
            below = [reach[id(child)] for child in node.children]
            end = max([node.end, *(e for e, _ in below)])
            used_at = max([node.used_at, *(u for _, u in below)])
            reach[id(node)] = (end, used_at)
        for node in order:
            for snapshot in node.snapshots.values():
                yield node, snapshot, *reach[id(node)]

    def clear(self, namespace: str) -> None:
        """Drop everything of a namespace that no running sequence uses."""
        self.evict_blocks(sum(1 for _ in self._nodes([namespace])), [namespace])

    def clear_all(self) -> None:
        """`clear` for every namespace."""
        for namespace in tuple(self._roots):
            self.clear(namespace)

    def _drop(self, snapshot: Snapshot) -> None:
        self.num_snapshots -= 1
        self._release_snapshot(snapshot.slot)

    def _gap(self, node: Node, snapshot: Snapshot) -> int:
        """Tokens that would have to be replayed from the nearest earlier snapshot if this one were gone."""
        at: Node | None = node
        while at is not None:
            earlier = [p for p in at.snapshots if p < snapshot.position]
            if earlier:
                return snapshot.position - max(earlier)
            at = at.parent
        return snapshot.position

    def _nodes(self, namespaces: Sequence[str] | None) -> Iterator[tuple[Node, str]]:
        for name, root in self._roots.items():
            if namespaces is not None and name not in namespaces:
                continue
            stack = list(root.children)
            while stack:
                node = stack.pop()
                yield node, name
                stack.extend(node.children)

    def _evicted_at(self, namespace: str, tokens: Tokens, num_matched: int) -> int | None:
        """The longest whole-block prefix of the prompt beyond the match that was in the tree once."""
        if not self._ghosts:
            return None
        found, chain = None, 0
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            chain = hash((chain, tokens[end - self.block_size : end]))
            if end > num_matched and (namespace, chain) in self._ghosts:
                found = end
        return found


def _is_free_leaf(node: Node) -> bool:
    return not node.children and node.users == 0


def _leaf_entry(node: Node, namespace: str) -> tuple[bool, int, int, int, Node, str]:
    return (node.main, node.used_at, -node.start, node.block, node, namespace)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are equal."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
