"""One image or video, ready for the encoder: patches, grid, times, number of tokens, content hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from sterna.vision.images import decode_image
from sterna.vision.patches import Float32, UInt8, normalised, patchify
from sterna.vision.resize import image_size, resample
from sterna.vision.settings import VisionLimits, VisionSettings
from sterna.vision.video import decode_video, patch_times

Kind = Literal["image", "video"]
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
PAD = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


@dataclass(frozen=True)
class MediaShape:
    """What the prompt needs to know: ``grid_thw`` (T, h, w) in patches, ``times`` in seconds per temporal patch of a video.

    ``digest`` identifies the source bytes and the settings: equal digests have equal features.
    """

    kind: Kind
    digest: bytes
    grid_thw: tuple[int, int, int]
    times: tuple[float, ...]
    merge_size: int

    @property
    def merged_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of one temporal patch."""
        return self.grid_thw[1] // self.merge_size, self.grid_thw[2] // self.merge_size

    @property
    def num_tokens(self) -> int:
        """Placeholder tokens, which is also the number of feature rows; start, end and time stamps are not counted."""
        rows, columns = self.merged_grid
        return self.grid_thw[0] * rows * columns

    @cached_property
    def placeholder(self) -> str:
        """What stands for it in the prompt, with one pad token per feature row; time stamps before every part of a video."""
        per_frame = VISION_START + PAD[self.kind] * (self.num_tokens // self.grid_thw[0]) + VISION_END
        if self.kind == "image":
            return per_frame
        return "".join(f"<{seconds:.1f} seconds>{per_frame}" for seconds in self.times)


@dataclass(frozen=True)
class Media(MediaShape):
    """The shape with ``patches`` uint8 [T * h * w, patch]."""

    patches: UInt8
    settings: VisionSettings

    def without_patches(self) -> MediaShape:
        """The shape alone, so that the patches can be freed."""
        return MediaShape(self.kind, self.digest, self.grid_thw, self.times, self.merge_size)

    def pixel_values(self, start: int = 0, stop: int | None = None) -> Float32:
        """float32 rows ``start`` to ``stop`` of the patches, normalised."""
        return normalised(self.patches[start:stop], self.settings)


def load_media(kind: Kind, data: bytes, settings: VisionSettings, limits: VisionLimits | None = None) -> Media:
    """`load_image` or `load_video`."""
    load = load_image if kind == "image" else load_video
    return load(data, settings, limits)


def load_image(data: bytes, settings: VisionSettings, limits: VisionLimits | None = None) -> Media:
    """An image file of any allowed format. Raises `UsageError` for what is damaged, too large or too thin."""
    image = decode_image(data, limits or VisionLimits())
    height, width = image_size(image.height, image.width, settings)
    pixels = np.asarray(resample(image, height, width))[None]
    size = settings.patch_size
    return Media(
        "image",
        content_digest("image", data, settings),
        (1, height // size, width // size),
        (),
        settings.merge_size,
        patchify(pixels, settings),
        settings,
    )


def load_video(data: bytes, settings: VisionSettings, limits: VisionLimits | None = None) -> Media:
    """A video file of any allowed container. Raises `UsageError` as `load_image`, and where PyAV is not installed."""
    video = decode_video(data, settings, limits or VisionLimits())
    size, times = settings.patch_size, patch_times(video.indices, video.fps, settings)
    return Media(
        "video",
        content_digest("video", data, settings),
        (len(times), video.frames.shape[1] // size, video.frames.shape[2] // size),
        times,
        settings.merge_size,
        patchify(video.frames, settings),
        settings,
    )


def content_digest(kind: Kind, data: bytes, settings: VisionSettings) -> bytes:
    """SHA-256 over kind, settings and bytes."""
    return hashlib.sha256(repr((kind, settings)).encode() + b"\0" + data).digest()
