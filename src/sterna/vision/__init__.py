"""From the bytes of images and videos to patches, token counts and positions (spec §4.1, §4.2, §4.4). No model, no backend."""

from sterna.vision.media import Media, MediaShape, load_image, load_media, load_video
from sterna.vision.parts import media_source
from sterna.vision.positions import MediaSpan, media_spans, multimodal_positions
from sterna.vision.settings import VisionLimits, VisionSettings, read_settings

__all__ = [
    "Media",
    "MediaShape",
    "MediaSpan",
    "VisionLimits",
    "VisionSettings",
    "load_image",
    "load_media",
    "load_video",
    "media_source",
    "media_spans",
    "multimodal_positions",
    "read_settings",
]
