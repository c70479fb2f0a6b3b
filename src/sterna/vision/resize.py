"""Target sizes of images and of video frames (spec §4.1, §4.2), and bicubic resampling with antialiasing."""

from __future__ import annotations

import math

from PIL import Image

from sterna.errors import UsageError
from sterna.vision.settings import VisionSettings

MAX_ASPECT_RATIO = 200


def image_size(height: int, width: int, settings: VisionSettings) -> tuple[int, int]:
    """(height, width) to which an image is resized. Raises `UsageError` for an aspect ratio above 200."""
    _check_aspect(height, width)
    return _fit(
        height,
        width,
        frames=1,
        padded_frames=1,
        factor=settings.factor,
        least=settings.image_min_pixels,
        most=settings.image_max_pixels,
    )


def frame_size(height: int, width: int, frames: int, settings: VisionSettings) -> tuple[int, int]:
    """(height, width) to which every one of ``frames`` frames is resized. The limits count the pixels of all frames.

    The area test counts frames rounded to whole temporal patches, the scale does not, as in the reference.
    Raises `UsageError` for an aspect ratio above 200.
    """
    factor = settings.factor
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    step = settings.temporal_patch_size
    return _fit(
        height,
        width,
        frames=frames,
        padded_frames=round(frames / step) * step,
        factor=factor,
        least=settings.video_min_pixels,
        most=settings.video_max_pixels,
    )


def resample(image: Image.Image, height: int, width: int) -> Image.Image:
    """Bicubic with antialiasing, as Pillow does it on 8-bit channels."""
    return image.resize((width, height), resample=Image.Resampling.BICUBIC)


def _check_aspect(height: int, width: int) -> None:
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise UsageError(
            f"the picture is {width}x{height}, an aspect ratio of {ratio:.0f}, allowed is up to {MAX_ASPECT_RATIO}",
            hint="cut it into pieces",
        )


def _fit(
    height: int, width: int, *, frames: int, padded_frames: int, factor: int, least: int, most: int
) -> tuple[int, int]:
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if padded_frames * rows * columns > most:
        beta = math.sqrt(frames * height * width / most)
        return tuple(max(factor, math.floor(side / beta / factor) * factor) for side in (height, width))  # type: ignore[return-value]
    if padded_frames * rows * columns < least:
        beta = math.sqrt(least / (frames * height * width))
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return rows, columns
