"""Model and engine configuration: frozen dataclasses, strict readers, units in names."""

from sterna.config.presets import PRESETS, preset
from sterna.config.reader import parse_model_config, read_model_config
from sterna.config.types import EngineConfig, ModelConfig, RopeParameters, TextConfig, VisionConfig

__all__ = [
    "PRESETS",
    "EngineConfig",
    "ModelConfig",
    "RopeParameters",
    "TextConfig",
    "VisionConfig",
    "parse_model_config",
    "preset",
    "read_model_config",
]
