"""The one owner of both cache resources: KV blocks for the attention layers, state slots for the DeltaNet layers.

A block belongs either to the prefix tree, which any number of sequences may read, or to one sequence. A state slot belongs
either to a running sequence or, as a snapshot, to the tree.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Protocol

from sterna.engine.block_pool import BlockPool
from sterna.engine.prefix_index import KIND_WEIGHT, PrefixIndex, PrefixMatch, Snapshot, SnapshotKind
from sterna.engine.sequence import Sequence
from sterna.engine.state_pool import StatePool


class Copier(Protocol):
    """The two copies that a reuse needs, as `Backend` has them."""

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot."""

    def copy_blocks(self, pairs: Items[tuple[int, int]]) -> None:
        """Copy KV blocks (source, target)."""


class Cache:
    """Gives sequences blocks and a state, and keeps what was computed until the room is needed.

    At most ``max_snapshots`` of the state slots hold snapshots; a running sequence takes their place when slots are short.
    """

    def __init__(
        self, copier: Copier, *, num_blocks: int, block_size: int, num_state_slots: int, max_snapshots: int
    ) -> None:
        self.copier = copier
        self.block_size = block_size
        self.blocks = BlockPool(num_blocks)
        self.states = StatePool(num_state_slots)
        self.prefixes = PrefixIndex(
            block_size=block_size,
            max_snapshots=min(max_snapshots, num_state_slots),
            release_block=lambda block: self.blocks.free([block]),
            release_snapshot=self.states.free,
        )

    @property
    def capacity_tokens(self) -> int:
        """Tokens that a sequence on its own can hold."""
        return self.blocks.num_blocks * self.block_size

    def acquire(self, sequence: Sequence, match: PrefixMatch) -> bool:
        """Give a waiting sequence a state and blocks for all its tokens, reusing what ``match`` found just now.

        False when there is no room; the sequence then holds nothing, as before.
        """
        self.prefixes.pin(match.path)
        shared = match.num_cached // self.block_size
        sequence.block_table = list(match.blocks[:shared])
        if self.grow(sequence, len(sequence)) and self._give_state(sequence, match):
            if match.num_cached % self.block_size:
                self.copier.copy_blocks([(match.blocks[shared], sequence.block_table[shared])])
                self.prefixes.unpin(match.path[shared:])
            sequence.path = list(match.path[:shared])
            sequence.num_computed_tokens = match.num_cached
            return True
        self.prefixes.unpin(match.path)
        self.blocks.free(sequence.block_table[shared:])
        sequence.block_table = []
        return False

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make the block table long enough for ``num_tokens``, evicting kept prefixes if need be."""
        missing = -(-num_tokens // self.block_size) - len(sequence.block_table)
        short = missing - self.blocks.num_free
        if short > 0 and self.prefixes.evict_blocks(short) < short:
            return False
        if missing > 0:
            sequence.block_table += self.blocks.allocate(missing)
        return True

    def take_snapshot_slot(self, kind: SnapshotKind, saved_tokens: int) -> int | None:
        """A slot into which the next pass may store a state that saves the replay of so many tokens.

        ``None`` when there is no room and nothing that is there is worth less.
        """
        value = KIND_WEIGHT[kind] * saved_tokens
        if self.prefixes.max_snapshots == 0:
            return None
        if not self.states.num_free and not self.prefixes.evict_snapshot(below=value):
            return None
        return self.states.allocate()

    def store(self, sequence: Sequence, snapshots: Items[tuple[int, int, SnapshotKind]] = ()) -> None:
        """Put the computed tokens of a running sequence into the tree, with states (position, slot, kind) inside them.

        Where an equal full block is there already, the sequence goes on with that one and its own is free.
        """
        computed, size = sequence.num_computed_tokens, self.block_size
        full = [node for node in sequence.path if node.end - node.start == size]
        used = sequence.block_table[: -(-computed // size)]
        nodes, unused = self.prefixes.insert(
            sequence.namespace, sequence.token_ids[:computed], used, main=sequence.is_main, after=full
        )
        held = nodes
        if unused and used[-1] in unused and computed % size:
            # a longer block of another sequence: this one must go on in its own
            held = nodes[:-1]
            unused.remove(used[-1])
        for i, node in enumerate(held):
            sequence.block_table[i] = node.block
        self.blocks.free(unused)
        self.prefixes.pin(held)
        self.prefixes.unpin(sequence.path)
        sequence.path = held
        for position, slot, kind in snapshots:
            if not self.prefixes.add_snapshot(nodes, position, slot, kind):
                self.states.free(slot)

    def release(self, sequence: Sequence, *, keep: bool) -> None:
        """Take everything back from a sequence; with ``keep`` its computed tokens stay to be continued later."""
        slot = sequence.state_slot
        if slot is None:
            return
        if keep and sequence.num_computed_tokens:
            self.store(sequence, [(sequence.num_computed_tokens, slot, SnapshotKind.TURN_END)])
        else:
            self.states.free(slot)
        self.prefixes.unpin(sequence.path)
        self.blocks.free(sequence.block_table[len(sequence.path) :])
        sequence.state_slot, sequence.block_table, sequence.path, sequence.num_computed_tokens = None, [], [], 0

    def clear(self) -> None:
        """Forget everything that no running sequence uses."""
        self.prefixes.clear_all()

    def _give_state(self, sequence: Sequence, match: PrefixMatch) -> bool:
        source = match.snapshot
        if self.states.num_free or self.prefixes.evict_snapshot(keep=source):
            sequence.state_slot = self.states.allocate()
            if source is not None:
                self.copier.copy_state(source.slot, sequence.state_slot)
            return True
        return source is not None and self._take_over(sequence, match, source)

    def _take_over(self, sequence: Sequence, match: PrefixMatch, source: Snapshot) -> bool:
        """The only slot that is not running is the snapshot itself: continue in it."""
        sequence.state_slot = self.prefixes.take_snapshot(match.path[-1], source)
        return True
