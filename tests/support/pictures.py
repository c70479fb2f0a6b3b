"""Encoded images of many kinds, generated."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]: smooth colours with noise, so that resampling has something to get wrong."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 // max(1, width), y * 255 // max(1, height), (x * 7 + y * 3) % 256], axis=-1)
    return np.clip(base + rng.integers(-40, 40, base.shape), 0, 255).astype(np.uint8)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The image as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png(width: int, height: int, seed: int = 0) -> bytes:
    """An RGB PNG of noise."""
    return encode(Image.fromarray(noise(width, height, seed)))


def modes() -> dict[str, bytes]:
    """One file per mode and container that a user may send."""
    rgb = Image.fromarray(noise(90, 61))
    alpha = Image.fromarray(noise(90, 61, 1)).convert("L")
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    palette = rgb.quantize(16)
    grey16 = Image.fromarray(np.arange(90 * 61, dtype=np.uint16).reshape(61, 90) % 700)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    frames = [Image.fromarray(noise(90, 61, seed)) for seed in range(3)]
    return {
        "rgb.png": encode(rgb),
        "rgba.png": encode(rgba),
        "la.png": encode(rgba.convert("LA")),
        "palette.png": encode(palette),
        "palette-transparent.png": encode(palette, transparency=3),
        "grey.png": encode(rgb.convert("L")),
        "bit.png": encode(rgb.convert("1")),
        "grey16.png": encode(grey16),
        "rgb.jpg": encode(rgb, "JPEG"),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "rotated.jpg": encode(rgb, "JPEG", exif=exif),
        "rotated.png": encode(rgb, "PNG", exif=exif),
        "rgba.webp": encode(rgba, "WEBP", lossless=True),
        "animated.webp": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "rgb.bmp": encode(rgb, "BMP"),
    }
