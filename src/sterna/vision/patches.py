"""From resized frames to the patch sequence that the tower reads (spec §4.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sterna.vision.settings import VisionSettings

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def patchify(frames: UInt8, settings: VisionSettings) -> UInt8:
    """uint8 [F, height, width, 3] -> [T * h * w, 3 * time * row * column] in merge-block order.

    Sides are multiples of ``settings.factor``. Missing frames of the last temporal patch repeat the last frame; a still
    image is one frame. Rows: temporal patch, block row, block column, row in block, column in block.
    """
    size, time, merge = settings.patch_size, settings.temporal_patch_size, settings.merge_size
    missing = -len(frames) % time
    if missing:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    count, height, width, channels = frames.shape
    rows, columns = height // settings.factor, width // settings.factor
    split = frames.reshape(count // time, time, rows, merge, size, columns, merge, size, channels)
    ordered = split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered).reshape(-1, channels * time * size * size)


def normalised(patches: UInt8, settings: VisionSettings) -> Float32:
    """float32 ``(value / 255 - mean) / std`` per channel, same shape. Channels are the slowest axis of a patch."""
    levels = np.arange(256, dtype=np.float64) / 255
    mean, std = np.array(settings.image_mean), np.array(settings.image_std)
    table = ((levels[None] - mean[:, None]) / std[:, None]).astype(np.float32)
    if np.array_equal(table[0], table[1]) and np.array_equal(table[0], table[2]):
        return np.asarray(table[0][patches])
    channels = patches.reshape(len(patches), 3, -1)
    return np.stack([table[c][channels[:, c]] for c in range(3)], axis=1).reshape(patches.shape)
