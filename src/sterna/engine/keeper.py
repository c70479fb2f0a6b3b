"""What the engine tells whoever keeps conversations beyond its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Keeper(Protocol):
    """Stores what was computed, and brings it back. Called between passes, from the thread that steps the engine.

    Tokens are `Sequence.key_ids`: images stand in them as keys of their content.
    """

    def save(self, namespace: str, key_ids: Sequence[int]) -> None:
        """These tokens are in the prefix tree, and a state after the last of them."""

    def restore(self, namespace: str, key_ids: Sequence[int]) -> None:
        """A prompt is about to be looked up: put what is stored of it into the tree, where that is more than is there."""
