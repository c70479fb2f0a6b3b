"""The one owner of both cache resources: KV blocks for the attention layers, state slots for the DeltaNet layers."""

from __future__ import annotations

from sterna.engine.block_pool import BlockPool
from sterna.engine.prefix_index import CachedPrefix, PrefixIndex
from sterna.engine.sequence import Sequence
from sterna.engine.state_pool import StatePool


class Cache:
    """Gives sequences blocks and a state, and keeps those of finished ones until the room is needed."""

    def __init__(self, *, num_blocks: int, block_size: int, num_state_slots: int) -> None:
        self.block_size = block_size
        self.blocks = BlockPool(num_blocks)
        self.states = StatePool(num_state_slots)
        self.prefixes = PrefixIndex()

    @property
    def capacity_tokens(self) -> int:
        """Tokens that a sequence on its own can hold."""
        return self.blocks.num_blocks * self.block_size

    def acquire(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a state and blocks for all its tokens, reusing a kept prefix.

        False when there is no room; the sequence then holds nothing, as before.
        """
        prefix = self.prefixes.take(sequence.token_ids)
        if prefix is not None:
            sequence.block_table = list(prefix.block_table)
            sequence.state_slot = prefix.state_slot
            sequence.num_computed_tokens = len(prefix.token_ids)
        elif self._free_state():
            sequence.state_slot = self.states.allocate()
        else:
            return False
        if not self.grow(sequence, len(sequence)):
            self.release(sequence, keep=prefix is not None)
            return False
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        return True

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make the block table long enough for ``num_tokens``, evicting kept prefixes if need be."""
        missing = -(-num_tokens // self.block_size) - len(sequence.block_table)
        while missing > self.blocks.num_free:
            if not self._evict():
                return False
        if missing > 0:
            sequence.block_table += self.blocks.allocate(missing)
        return True

    def release(self, sequence: Sequence, *, keep: bool) -> None:
        """Take everything back from a sequence; with ``keep`` its computed tokens stay to be continued later."""
        slot, table = sequence.state_slot, sequence.block_table
        computed = sequence.num_computed_tokens
        sequence.state_slot, sequence.block_table, sequence.num_computed_tokens = None, [], 0
        if slot is None:
            return
        if not keep or not computed:
            self.blocks.free(table)
            self.states.free(slot)
            return
        used = -(-computed // self.block_size)
        self.blocks.free(table[used:])
        self.prefixes.put(CachedPrefix(tuple(sequence.token_ids[:computed]), table[:used], slot))

    def clear(self) -> None:
        """Forget all kept prefixes."""
        while self._evict():
            pass

    def _free_state(self) -> bool:
        return self.states.num_free > 0 or self._evict()

    def _evict(self) -> bool:
        prefix = self.prefixes.evict()
        if prefix is None:
            return False
        self.blocks.free(prefix.block_table)
        self.states.free(prefix.state_slot)
        return True
