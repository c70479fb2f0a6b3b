"""Bytes of an image file to RGB pixels. The bytes are hostile: nothing is decoded before its size is known and allowed."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from sterna.errors import UsageError
from sterna.vision.settings import VisionLimits

# Decoders that are fuzzed everywhere; the many others that Pillow has are never tried.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")


def decode_image(data: bytes, limits: VisionLimits) -> Image.Image:
    """An upright RGB image: EXIF rotation applied, transparency on white, the first frame of an animation.

    Raises `UsageError`, naming the limit, for anything that is not an image of an allowed format and size.
    """
    if len(data) > limits.max_image_bytes:
        raise UsageError(
            f"the image has {len(data):,} bytes, allowed are {limits.max_image_bytes:,} (max_image_bytes)",
            hint="scale it down",
        )
    _check_kind(data)
    if size := _webp_canvas(data):
        _check_pixels(*size, limits)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_pixels(*image.size, limits)
        image.load()
        _check_pixels(*image.size, limits)
        return _as_rgb(ImageOps.exif_transpose(image))
    except UsageError:
        raise
    except Image.DecompressionBombError as error:
        raise UsageError(
            f"the image is too large, allowed are {limits.max_image_pixels:,} pixels (max_image_pixels)"
        ) from error
    except MemoryError as error:
        raise UsageError("the image needs more memory than there is") from error
    # Decoders raise almost anything on damaged files: OSError, SyntaxError, ValueError, struct.error, IndexError, …
    except Exception as error:
        raise UsageError(f"the image cannot be decoded ({str(error)[:100] or type(error).__name__})") from error


def _check_kind(data: bytes) -> None:
    if not data:
        raise UsageError("the image is empty")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml", b"<!doctype")) or b"<svg" in head:
        raise UsageError(f"the image is SVG, allowed are {', '.join(FORMATS)}", hint="convert it to PNG")
    known = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM")
    if not data.startswith(known) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise UsageError(f"the data is not an image of a known format, allowed are {', '.join(FORMATS)}")


def _check_pixels(width: int, height: int, limits: VisionLimits) -> None:
    if width < 1 or height < 1:
        raise UsageError(f"the image is {width}x{height}, allowed is 1x1 or more")
    if width * height > limits.max_image_pixels:
        raise UsageError(
            f"the image is {width}x{height} = {width * height:,} pixels, "
            f"allowed are {limits.max_image_pixels:,} (max_image_pixels)",
            hint="scale it down",
        )


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height of an extended WebP file, whose decoder reserves the canvas before anyone can ask for its size."""
    if data[8:16] != b"WEBPVP8X" or len(data) < 30:
        return None
    return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")


def _as_rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
