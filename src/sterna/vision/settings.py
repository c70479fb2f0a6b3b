"""How pictures become patches (the checkpoint decides) and how much of them is accepted (the owner of the machine decides)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sterna.config import VisionConfig
from sterna.config.fields import Fields, load_json
from sterna.errors import ConfigError

IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
# What names the processor, or restates the only way there is here.
_INERT = frozenset(
    ["processor_class", "image_processor_type", "video_processor_type", "feature_extractor_type", "_processor_class"]
    + ["return_metadata", "input_data_format", "data_format", "disable_grouping", "return_tensors", "device"]
)
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_convert_rgb": (True,),
    "do_sample_frames": (True,),
    "do_center_crop": (False, None),
    "do_pad": (False, None),
    "crop_size": (None,),
    "pad_size": (None,),
    "default_to_square": (False, True),
    "resample": (3,),
    "rescale_factor": (1 / 255,),
    "num_frames": (None,),
    "cap_pixels_per_frame": (False, None),
}


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """Preprocessing of one checkpoint; the defaults are the official ones (spec §1.3, §1.4). Pixels are areas."""

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_min_pixels: int = 65_536
    image_max_pixels: int = 16_777_216
    video_min_pixels: int = 4_096
    video_max_pixels: int = 25_165_824
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def factor(self) -> int:
        """Both sides of a resized picture are multiples of this."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True, slots=True)
class VisionLimits:
    """What is refused, with the limit in the message, before it costs much; all are per picture except ``max_media``."""

    max_media: int = 64
    max_image_bytes: int = 32 << 20
    max_image_pixels: int = 50_000_000
    max_video_bytes: int = 256 << 20
    max_video_frames: int = 36_000
    max_video_seconds: float = 1_200.0
    decode_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) <= 0:
                raise ConfigError(f"{each.name} is {getattr(self, each.name)}, allowed is above 0")


def read_settings(directory: Path, config: VisionConfig) -> VisionSettings:
    """The settings of a checkpoint directory: its two preprocessor files where they are present, official values elsewhere.

    Raises `ConfigError` for an unknown key, a way of processing that is not implemented, or a contradiction to ``config``.
    """
    values: dict[str, Any] = {
        "patch_size": config.patch_size,
        "temporal_patch_size": config.temporal_patch_size,
        "merge_size": config.spatial_merge_size,
    }
    for name, prefix in ((IMAGE_FILE, "image"), (VIDEO_FILE, "video")):
        path = directory / name
        if path.exists():
            values |= _read_file(load_json(path.read_bytes(), where=str(path)), str(path), prefix, config)
    return VisionSettings(**values)


def _read_file(content: Mapping[str, Any], where: str, prefix: str, config: VisionConfig) -> dict[str, Any]:
    given = Fields(content, where)
    given.require("patch_size", config.patch_size)
    given.require("temporal_patch_size", config.temporal_patch_size)
    given.require("merge_size", config.spatial_merge_size)
    for key, allowed in _FIXED.items():
        given.require(key, *allowed)
    values: dict[str, Any] = {}
    for key in ("image_mean", "image_std"):
        values[key] = _three_numbers(given, key)
    size = given.section("size")
    if size is not None:
        area = Fields(size, f"{where}.size")
        for key, name in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
            values[f"{prefix}_{name}"] = area.integer(key)
        area.finish(frozenset())
    # Older files repeat the areas under these names.
    for key in ("min_pixels", "max_pixels"):
        if given.get(key, None) is not None:
            values[f"{prefix}_{key}"] = given.integer(key)
    if prefix == "video":
        if given.get("fps", None) is not None:
            values["fps"] = given.number("fps", maximum=1000.0)
        for key in ("min_frames", "max_frames"):
            if given.get(key, None) is not None:
                values[key] = given.integer(key)
    given.finish(_INERT)
    return values


def _three_numbers(given: Fields, key: str) -> tuple[float, float, float]:
    value = given.get(key, [0.5, 0.5, 0.5])
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 3 or (key == "image_std" and not all(v > 0 for v in value)):
        raise given.fail(key, "a list of three numbers")
    return (float(value[0]), float(value[1]), float(value[2]))
