"""Which KV blocks are free. Knows neither tokens nor the model."""

from __future__ import annotations


class BlockPool:
    """``num_blocks`` blocks with numbers from 0; each is free or has exactly one owner."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks without an owner."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks, the most recently freed first; the caller has checked `num_free`."""
        assert count <= len(self._free), "allocation beyond the pool"
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._is_free[block] = False
        return blocks

    def free(self, blocks: list[int]) -> None:
        """Give blocks back."""
        for block in reversed(blocks):
            assert not self._is_free[block], f"block {block} was freed twice"
            self._is_free[block] = True
            self._free.append(block)
