"""Which tokens of a prompt are features, and the three-axis positions that follow from it (spec §4.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sterna.errors import UsageError
from sterna.vision.media import MediaShape

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class MediaSpan:
    """Tokens ``start`` … ``start + rows * columns`` of a prompt are the features of an image or one temporal patch of a video.

    ``digest`` names the content, ``features`` are float32 [rows * columns, D].
    """

    start: int
    rows: int
    columns: int
    digest: bytes
    features: Float32

    @property
    def end(self) -> int:
        """Index after the last token."""
        return self.start + self.rows * self.columns

    def content_ids(self) -> list[int]:
        """A number below -1 per token, a function of content and place in it: equal numbers stand for equal features."""
        stream = hashlib.shake_256(self.digest).digest(8 * (self.end - self.start))
        words = np.frombuffer(stream, "<u8") >> np.uint64(2)
        return [-2 - word for word in words.tolist()]


def media_spans(placeholders: Sequence[int], media: Sequence[tuple[MediaShape, Float32]]) -> list[MediaSpan]:
    """The spans of a prompt whose pad tokens stand at ``placeholders`` (ascending), for its media with their features.

    Raises `UsageError` if the prompt has another number of placeholders than the media have rows.
    """
    wanted = sum(item.num_tokens for item, _ in media)
    if len(placeholders) != wanted:
        raise UsageError(f"the prompt has {len(placeholders)} image and video tokens, its media have {wanted}")
    spans, at = [], 0
    for item, features in media:
        if features.shape[0] != item.num_tokens:
            raise UsageError(
                f"the features have {features.shape[0]} rows, the {item.kind} has {item.num_tokens} tokens"
            )
        rows, columns = item.merged_grid
        size = rows * columns
        for frame in range(item.grid_thw[0]):
            digest = hashlib.sha256(item.digest + frame.to_bytes(4, "little")).digest()
            part = features[frame * size : (frame + 1) * size]
            spans.append(MediaSpan(placeholders[at], rows, columns, digest, part))
            if placeholders[at + size - 1] != placeholders[at] + size - 1:
                raise UsageError(f"the tokens of the {item.kind} at {placeholders[at]} are not in one piece")
            at += size
    return spans


def multimodal_positions(num_tokens: int, spans: Sequence[MediaSpan]) -> tuple[Int32, int]:
    """(positions int32 [3, num_tokens] on the axes time, height, width; delta).

    Text advances all axes by one. A span starts where the text before it ended, runs over rows and columns, and text goes on
    after its longer side. Token n after the prompt has position ``n + delta`` on all axes.
    """
    positions = np.empty((3, num_tokens), np.int32)
    at = position = 0
    for span in spans:
        length = span.start - at
        positions[:, at : span.start] = np.arange(position, position + length)
        position += length
        row, column = np.divmod(np.arange(span.rows * span.columns), span.columns)
        positions[:, span.start : span.end] = position + np.stack([np.zeros_like(row), row, column])
        position += max(span.rows, span.columns)
        at = span.end
    positions[:, at:] = np.arange(position, position + num_tokens - at)
    delta = position + (num_tokens - at) - num_tokens
    return positions, delta
