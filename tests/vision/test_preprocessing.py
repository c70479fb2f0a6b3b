"""Images and clips become exactly the patches of transformers' processors."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sterna.errors import ConfigError, UsageError
from sterna.ops import tolerances
from sterna.vision import VisionLimits, VisionSettings, load_image, load_video, read_settings
from sterna.vision.resize import frame_size, image_size
from sterna.vision.video import patch_times, sample_indices
from support.pictures import encode, modes, noise, png

DATA = Path(__file__).parents[1] / "data" / "vision"
SETTINGS = VisionSettings()
SIZES = [
    (1, 1),
    (5, 3),
    (33, 31),
    (100, 77),
    (256, 256),
    (257, 511),
    (48, 80),
    (640, 480),
    (199, 1),
    (1000, 10),
    (47, 49),
]


@cache
def processor() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def assert_equal_to_reference(data: bytes, settings: VisionSettings = SETTINGS, **options: Any) -> None:
    got = load_image(data, settings)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = processor()(images=[upright], return_tensors="np", **options)
    assert got.grid_thw == tuple(expected["image_grid_thw"][0].tolist())
    assert got.num_tokens == expected["image_grid_thw"][0].prod() // 4
    assert np.abs(got.pixel_values() - expected["pixel_values"]).max() <= tolerances.PIXELS


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_sizes(size: tuple[int, int]) -> None:
    assert_equal_to_reference(png(*size))


@pytest.mark.parametrize("name", sorted(modes()))
def test_modes(name: str) -> None:
    assert_equal_to_reference(modes()[name])


def test_limits_of_the_checkpoint_apply() -> None:
    small = VisionSettings(image_min_pixels=1024, image_max_pixels=64 * 64)
    size = {"shortest_edge": 1024, "longest_edge": 64 * 64}
    for width, height in ((300, 200), (20, 9), (64, 65), (3, 400)):
        assert_equal_to_reference(png(width, height), small, size=size)


def test_every_size_near_the_limits_agrees_with_the_reference() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 9000, (3000, 2)).tolist():
        if max(height, width) / min(height, width) > 200:
            with pytest.raises(UsageError, match="aspect ratio"):
                image_size(height, width, SETTINGS)
        else:
            assert image_size(height, width, SETTINGS) == smart_resize(height, width, 32, 65536, 16777216)


def test_rotation_and_transparency_show() -> None:
    files = modes()
    upright, rotated = load_image(files["rgb.jpg"], SETTINGS), load_image(files["rotated.jpg"], SETTINGS)
    assert upright.grid_thw == (1, rotated.grid_thw[2], rotated.grid_thw[1]) != rotated.grid_thw
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert load_image(encode(clear), SETTINGS).patches.min() == 255


def test_digest_follows_content_and_settings() -> None:
    one, other = png(64, 64, 0), png(64, 64, 1)
    digests = {load_image(one, SETTINGS).digest, load_image(other, SETTINGS).digest}
    digests.add(load_image(one, VisionSettings(image_min_pixels=4096)).digest)
    assert len(digests) == 3
    assert load_image(one, SETTINGS).digest in digests


def test_order_of_patches() -> None:
    """Red counts columns, green rows: every patch says where it comes from."""
    y, x = np.mgrid[0:256, 0:288]
    image = np.stack([x // 16, y // 16, np.zeros_like(x)], axis=-1).astype(np.uint8)
    patches = load_image(encode(Image.fromarray(image)), SETTINGS).patches.reshape(-1, 3, 2, 16, 16)
    assert (patches == patches[:, :, :1, :1, :1]).all()
    places = [tuple(place) for place in patches[:, 1::-1, 0, 0, 0].tolist()]
    assert places[:6] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]
    assert places[4 * 9] == (2, 0) and len(set(places)) == 16 * 18


def test_placeholder_of_an_image() -> None:
    media = load_image(png(256, 320), SETTINGS)
    assert media.num_tokens == 80
    assert media.placeholder == "<|vision_start|>" + "<|image_pad|>" * 80 + "<|vision_end|>"


# video ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["short.mp4", "odd.mov", "tiny.avi", "long.webm"])
def test_clips(name: str) -> None:
    pytest.importorskip("av", reason="video needs PyAV, the extra `video`")
    with np.load(DATA / "clips.npz") as stored:
        expected = {key.split("/")[1]: stored[key] for key in stored if key.startswith(name)}
    got = load_video((DATA / name).read_bytes(), SETTINGS)
    assert got.grid_thw == tuple(expected["grid"].tolist())
    assert got.times == pytest.approx(expected["times"].tolist(), abs=1e-12)
    # torchvision resamples 8-bit frames by other integer arithmetic than Pillow.
    difference = np.abs(got.patches.astype(int) - expected["pixels"])
    assert difference.max() <= tolerances.VIDEO_LEVELS
    assert difference.mean() < 0.1


def test_placeholder_of_a_video() -> None:
    pytest.importorskip("av", reason="video needs PyAV, the extra `video`")
    media = load_video((DATA / "short.mp4").read_bytes(), SETTINGS)
    frame = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    assert media.placeholder == f"<0.1 seconds>{frame}<0.4 seconds>{frame}"
    assert media.num_tokens == 8


def test_sampled_frames_and_their_times() -> None:
    assert sample_indices(300, 30.0, SETTINGS) == tuple(np.linspace(0, 299, 20).round().astype(int))
    assert sample_indices(3, 30.0, SETTINGS) == (0, 1, 2)
    assert len(sample_indices(100_000, 30.0, SETTINGS)) == 768
    assert patch_times((0, 10, 20), 10.0, SETTINGS) == (0.5, 2.0)


def test_every_frame_size_agrees_with_the_reference() -> None:
    """The rule restated: the area counts whole temporal patches, the scale does not."""
    for frames, height, width in ((4, 48, 80), (5, 20, 24), (7, 64, 128), (768, 1080, 1920), (3, 2000, 3000)):
        rows, columns = frame_size(height, width, frames, SETTINGS)
        assert rows % 32 == columns % 32 == 0
        assert round(frames / 2) * 2 * rows * columns <= 25_165_824
    assert frame_size(1080, 1920, 768, SETTINGS) == (128, 224)
    assert frame_size(20, 24, 6, SETTINGS) == (32, 32)


# settings ------------------------------------------------------------------------------------------------------------


def vision_config() -> Any:
    from sterna.config import read_model_config

    return read_model_config(Path(__file__).parents[1] / "data" / "official").vision


def test_official_settings_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,'
        '"merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],'
        '"processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}'
    )
    assert read_settings(tmp_path, vision_config()) == VisionSettings()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"patch_size": 14}', "patch_size is 14"),
        ('{"do_resize": false}', "do_resize is false"),
        ('{"crop": 1}', "unknown key 'crop'"),
        ('{"image_std": [0.5, 0, 0.5]}', "three numbers"),
        ('{"size": {"height": 3}}', "lacks the key|unknown key"),
    ],
)
def test_settings_that_are_not_understood(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ConfigError, match=error):
        read_settings(tmp_path, vision_config())


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="max_media"):
        VisionLimits(max_media=0)


def test_normalisation_by_channel() -> None:
    settings = VisionSettings(image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7))
    media = load_image(encode(Image.fromarray(noise(256, 256))), settings)
    pixels = media.pixel_values().reshape(-1, 3, 512)
    levels = media.patches.reshape(-1, 3, 512) / 255
    for c in range(3):
        expected = (levels[:, c] - settings.image_mean[c]) / settings.image_std[c]
        assert np.abs(pixels[:, c] - expected).max() <= tolerances.PIXELS
