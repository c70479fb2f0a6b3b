"""The prefix tree against a brute-force model: a list of the sequences and snapshots that were put in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.engine.prefix_index import PrefixIndex, SnapshotKind

BLOCK = 4


class Pool:
    """Hands out ids and checks that each comes back once."""

    def __init__(self) -> None:
        self.counter = itertools.count()
        self.held: set[int] = set()

    def take(self) -> int:
        item = next(self.counter)
        self.held.add(item)
        return item

    def release(self, item: int) -> None:
        self.held.remove(item)


class Harness:
    """An index with its two pools."""

    def __init__(self, max_snapshots: int = 1000) -> None:
        self.blocks, self.slots = Pool(), Pool()
        self.index = PrefixIndex(
            block_size=BLOCK,
            max_snapshots=max_snapshots,
            release_block=self.blocks.release,
            release_snapshot=self.slots.release,
        )

    def put(self, tokens: list[int], snapshots: list[int], *, namespace: str = "", main: bool = False) -> None:
        blocks = [self.blocks.take() for _ in range(-(-len(tokens) // BLOCK))]
        nodes, unused = self.index.insert(namespace, tokens, blocks, main=main)
        for block in unused:
            self.blocks.release(block)
        for position in snapshots:
            slot = self.slots.take()
            if not self.index.add_snapshot(nodes, position, slot, SnapshotKind.TURN_END) and slot in self.slots.held:
                self.slots.release(slot)


def brute_force(stored: list[tuple[list[int], list[int]]], prompt: list[int]) -> tuple[int, int]:
    """(longest reusable, longest matched) prefix of the prompt."""
    best = matched = 0
    for tokens, snapshots in stored:
        common = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(tokens, prompt, strict=False))))
        matched = max(matched, common)
        best = max([best, *(p for p in snapshots if p <= min(common, len(prompt) - 1))])
    return best, matched


sequences = st.lists(st.integers(0, 2), min_size=1, max_size=18)
stores = st.lists(st.tuples(sequences, st.sets(st.integers(1, 18))), max_size=8)


@settings(max_examples=300, deadline=None)
@given(stores, sequences)
def test_match_is_what_brute_force_finds(store: list[tuple[list[int], set[int]]], prompt: list[int]) -> None:
    harness = Harness()
    stored = [(tokens, sorted(p for p in snapshots if p <= len(tokens))) for tokens, snapshots in store]
    for tokens, snapshots in stored:
        harness.put(tokens, snapshots)
    match = harness.index.match("", prompt)
    assert (match.num_cached, match.num_matched) == brute_force(stored, prompt)
    assert len(match.blocks) == -(-match.num_cached // BLOCK)
    assert set(match.blocks) <= harness.blocks.held
    assert harness.index.match("other", prompt).num_matched == 0


@settings(max_examples=200, deadline=None)
@given(stores, st.integers(0, 40), st.integers(0, 3))
def test_eviction_leaks_nothing(store: list[tuple[list[int], set[int]]], count: int, max_snapshots: int) -> None:
    harness = Harness(max_snapshots)
    for tokens, snapshots in store:
        harness.put(tokens, sorted(p for p in snapshots if p <= len(tokens)))
        assert harness.index.num_snapshots == len(harness.slots.held) <= max_snapshots
    before = len(harness.blocks.held)
    assert harness.index.evict_blocks(count) == min(count, before)
    assert len(harness.blocks.held) == max(0, before - count)
    harness.index.clear("")
    assert not harness.blocks.held and not harness.slots.held


def test_pinned_blocks_stay() -> None:
    harness = Harness()
    harness.put([1] * 8, [8])
    match = harness.index.match("", [1] * 9)
    harness.index.pin(match.path)
    assert harness.index.evict_blocks(10) == 0
    harness.index.unpin(match.path)
    assert harness.index.evict_blocks(10) == 2


def test_side_prefixes_go_before_main_ones() -> None:
    harness = Harness()
    harness.put([1] * 8, [8], main=True)
    harness.put([2] * 8, [8])
    assert harness.index.evict_blocks(2) == 2
    assert harness.index.match("", [1] * 9).num_cached == 8
    assert harness.index.match("", [2] * 9).num_cached == 0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 9, 9], "differs from the cached prefix at token 7: cached 8, prompt 9"),
        ([9, 9], "differs from the cached prefix at token 0: cached 1, prompt 9"),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "no state snapshot between tokens 4 and 8"),
        ([1, 2, 3, 4, 5], None),
    ],
)
def test_reasons(prompt: list[int], expected: str | None) -> None:
    harness = Harness()
    harness.put([1, 2, 3, 4, 5, 6, 7, 8], [4])
    match = harness.index.match("", prompt)
    reason = match.reason(len(prompt))
    if expected is not None and "differs" in expected and match.num_matched > match.num_cached:
        assert reason == f"no state snapshot between tokens {match.num_cached} and {match.num_matched}"
        assert match.divergence is not None
    else:
        assert reason == expected


def test_eviction_is_named_as_the_reason() -> None:
    harness = Harness()
    harness.put([1] * 12, [12])
    harness.index.evict_blocks(2)
    match = harness.index.match("", [1] * 13)
    assert match.reason(13) == "tokens up to 12 were cached but evicted to stay within the budget"


def test_partly_filled_block_is_extended_in_place() -> None:
    harness = Harness()
    block = harness.blocks.take()
    first, unused = harness.index.insert("", [1, 2], [block])
    second, unused = harness.index.insert("", [1, 2, 3, 4, 5], [block, harness.blocks.take()])
    assert first[0] is second[0] and not unused
    assert harness.index.match("", [1, 2, 3, 4, 5]).num_matched == 5


def test_weakest_snapshot_goes_first() -> None:
    harness = Harness(max_snapshots=2)
    blocks = [harness.blocks.take() for _ in range(2)]
    nodes, _ = harness.index.insert("", [1] * 8, blocks)
    for position, kind in ((4, SnapshotKind.SYSTEM_END), (6, SnapshotKind.INTERVAL), (8, SnapshotKind.TURN_END)):
        harness.index.add_snapshot(nodes, position, harness.slots.take(), kind)
    assert harness.index.match("", [1] * 7).num_cached == 4
    assert harness.index.match("", [1] * 9).num_cached == 8
