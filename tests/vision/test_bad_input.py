"""Hostile bytes: refused as `UsageError` with the limit named, before they cost much; nothing else ever comes out."""

from __future__ import annotations

import base64
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sterna.errors import SternaError, UsageError
from sterna.vision import VisionLimits, VisionSettings, load_image, load_media, load_video, media_source
from sterna.vision import video as video_module
from support.pictures import encode, modes, noise, png

SETTINGS = VisionSettings(image_min_pixels=1024, image_max_pixels=65536, video_max_pixels=65536 * 4)
LIMITS = VisionLimits(max_image_pixels=1_000_000, max_image_bytes=1 << 20, max_video_bytes=1 << 20)
CLIPS = Path(__file__).parents[1] / "data" / "vision"
# An image that is refused takes no longer than this by far; the check only has to notice one that is decoded.
SECONDS = 20


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int) -> bytes:
    """A few kilobytes that claim to be, and would inflate to, a huge image."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9) * 4)
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    frames = [Image.new("P", (300, 300), i % 256) for i in range(80)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def webp_canvas(width: int, height: int) -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + struct.pack("<I", width - 1)[:3]
    body += struct.pack("<I", height - 1)[:3]
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "A" * (70 << 20), zip=True)
    return encode(Image.new("RGB", (8, 8)), "PNG", pnginfo=info)


def exif_garbage() -> bytes:
    return encode(Image.new("RGB", (64, 64)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(40))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty"),
        (b"hello, this is text", "not an image of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf  <?xml version='1.0'?><svg/>", "SVG"),
        (b"%PDF-1.7", "not an image"),
        (png_bomb(40_000, 40_000), "max_image_pixels"),
        (png_bomb(2_000_000_000, 2), "max_image_pixels|cannot be decoded"),
        (png_bomb(0, 5), "cannot be decoded|allowed is 1x1"),
        (webp_canvas(16_000_000, 16_000_000), "max_image_pixels"),
        (webp_canvas(64, 64), "cannot be decoded"),
        (png(10_000, 1), "aspect ratio of 10000, allowed is up to 200"),
        (png(1, 402), "aspect ratio"),
        (bytes(2 << 20), "max_image_bytes"),
        (png(64, 64)[:-30], "cannot be decoded"),
        (png(300, 300)[:400], "cannot be decoded"),
        (modes()["rgb.jpg"][:700], "cannot be decoded"),
        (text_bomb(), "cannot be decoded"),
        (b"GIF89a", "cannot be decoded"),
        (b"BM" + bytes(60), "cannot be decoded"),
    ],
)
def test_images_that_are_refused(data: bytes, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match=message):
        load_image(data, SETTINGS, LIMITS)
    assert time.monotonic() - started < SECONDS


def test_a_long_animation_costs_one_frame() -> None:
    started = time.monotonic()
    media = load_image(gif_bomb(), SETTINGS, LIMITS)
    assert media.grid_thw[0] == 1 and time.monotonic() - started < SECONDS


def test_hostile_exif_does_not_matter() -> None:
    try:
        assert load_image(exif_garbage(), SETTINGS, LIMITS).num_tokens > 0
    except UsageError as error:
        assert "cannot be decoded" in error.message


def test_formats_with_large_decoders_are_not_tried() -> None:
    for name in ("TIFF", "PPM", "ICO", "TGA", "JPEG2000"):
        data = encode(Image.new("RGB", (64, 64)), name)
        with pytest.raises(UsageError, match="known format"):
            load_image(data, SETTINGS, LIMITS)


def mutate(data: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(data)
    for position, value in edits:
        changed[position % len(changed)] = value
    return bytes(changed[: len(changed) - cut % len(changed)])


def small_files() -> list[bytes]:
    tiny = Image.fromarray(noise(20, 14))
    return [
        *modes().values(),
        encode(tiny),
        encode(tiny, "JPEG"),
        encode(tiny, "WEBP"),
        encode(tiny.quantize(4), "GIF"),
    ]


FILES = small_files()
EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FILES), EDITS, st.sampled_from([0, 0, 1, 7, 40, 300]))
def test_damaged_images_are_decoded_or_refused(data: bytes, edits: list[tuple[int, int]], cut: int) -> None:
    try:
        media = load_image(mutate(data, edits, cut), SETTINGS, LIMITS)
    except SternaError:
        return
    assert media.patches.shape == (np.prod(media.grid_thw), 1536)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM"]),
)
def test_noise_behind_a_good_beginning_is_refused(data: bytes, start: bytes) -> None:
    try:
        load_image(start + data, SETTINGS, LIMITS)
    except SternaError as error:
        assert error.message


# video ---------------------------------------------------------------------------------------------------------------


def av() -> Any:
    return pytest.importorskip("av", reason="video needs PyAV, the extra `video`")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the video is empty"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "known container"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "known container"),
        (png(64, 64), "known container"),
        (bytes(2 << 20), "max_video_bytes"),
        (b"\0\0\0\x18ftypmp42" + bytes(200), "cannot be decoded|no video stream|damaged"),
        (b"\x1a\x45\xdf\xa3" + bytes(200), "cannot be decoded|no video stream|damaged"),
    ],
)
def test_videos_that_are_refused(data: bytes, message: str) -> None:
    av()
    with pytest.raises(UsageError, match=message):
        load_video(data, SETTINGS, LIMITS)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (VisionLimits(max_video_frames=50), "more than 50 frames .max_video_frames"),
        (VisionLimits(max_video_seconds=2), "lasts 4 s, allowed are 2 .max_video_seconds"),
        (VisionLimits(max_image_pixels=5000), "frames are 128x64.*max_image_pixels"),
        (VisionLimits(max_video_bytes=500), "max_video_bytes"),
        (VisionLimits(decode_timeout_s=1e-9), "decode_timeout_s"),
    ],
)
def test_limits_of_videos(limits: VisionLimits, message: str) -> None:
    av()
    with pytest.raises(UsageError, match=message):
        load_video((CLIPS / "long.webm").read_bytes(), SETTINGS, limits)


def test_a_truncated_clip_is_refused() -> None:
    av()
    data = (CLIPS / "odd.mov").read_bytes()
    with pytest.raises(UsageError, match="damaged|cannot be decoded"):
        load_video(data[: len(data) // 2], SETTINGS, LIMITS)


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError) as error:
        load_video((CLIPS / "short.mp4").read_bytes(), SETTINGS, LIMITS)
    assert "sterna[video]" in (error.value.hint or "")


def test_only_the_video_path_imports_pyav() -> None:
    assert not hasattr(video_module, "av")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["short.mp4", "odd.mov", "tiny.avi"]), EDITS, st.sampled_from([0, 0, 1, 100, 900]))
def test_damaged_clips_are_decoded_or_refused(name: str, edits: list[tuple[int, int]], cut: int) -> None:
    av()
    try:
        media = load_video(mutate((CLIPS / name).read_bytes(), edits, cut), SETTINGS, LIMITS)
    except SternaError:
        return
    assert len(media.times) == media.grid_thw[0]


# parts ---------------------------------------------------------------------------------------------------------------

PNG = png(64, 64)
ENCODED = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "data": PNG},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{ENCODED}"},
        {"type": "input_image", "image_url": f"data:image/jpeg;charset=x;base64,{ENCODED}"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ENCODED}},
        {"type": "image", "source": {"type": "base64", "data": ENCODED}},
        {"image": f"data:;base64,{ENCODED}"},
        {"type": "image", "data": f"data:image/png;base64,{ENCODED[:40]}\n{ENCODED[40:]}"},
    ],
)
def test_parts_of_every_protocol(part: dict[str, Any]) -> None:
    assert media_source("image", part) == PNG


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "nothing is fetched"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "nothing is fetched"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "nothing is fetched"),
        ({"type": "image_url", "image_url": {}}, "holds no data"),
        ({"type": "image_url", "image_url": 3}, "holds no data"),
        ({"type": "image", "source": {"type": "url", "url": "https://example.org"}}, "allowed is 'base64'"),
        ({"type": "image_url", "image_url": "data:text/html;base64,AAAA"}, "media type is 'text/html'"),
        ({"type": "image_url", "image_url": "data:video/mp4;base64,AAAA"}, "media type is 'video/mp4'"),
        ({"type": "image_url", "image_url": "data:image/png,AAAA"}, "not base64"),
        ({"type": "image_url", "image_url": "data:image/png;base64,A!AA"}, "damaged"),
        ({"type": "image_url", "image_url": "data:image/png;base64," + "A" * 200_000}, "allowed are 1,000"),
    ],
)
def test_parts_that_are_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        media_source("image", part, VisionLimits(max_image_bytes=1000))


@settings(max_examples=40, deadline=None)
@example({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}})
@given(
    st.dictionaries(
        st.sampled_from(["type", "data", "image", "image_url", "source", "url", "input_image", "video"]),
        st.recursive(
            st.none() | st.text(max_size=30) | st.integers() | st.binary(max_size=30),
            lambda inner: st.dictionaries(st.sampled_from(["type", "url", "data", "media_type"]), inner, max_size=3),
            max_leaves=3,
        ),
    )
)
def test_any_part_is_read_or_refused(part: dict[str, Any]) -> None:
    try:
        load_media("image", media_source("image", part, LIMITS), SETTINGS, LIMITS)
    except SternaError as error:
        assert error.message
