"""Which DeltaNet state slots are free."""

from __future__ import annotations


class StatePool:
    """``num_slots`` state slots with numbers from 0; a sequence needs exactly one while any of its tokens is cached."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Slots without an owner."""
        return len(self._free)

    def allocate(self) -> int:
        """Take a slot; the caller has checked `num_free`."""
        return self._free.pop()

    def free(self, slot: int) -> None:
        """Give a slot back."""
        assert slot not in self._free, f"state slot {slot} was freed twice"
        self._free.append(slot)
