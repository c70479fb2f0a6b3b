"""Built-in configurations: the official files of a published checkpoint, kept as package data."""

from __future__ import annotations

from importlib.resources import files

from sterna.config.fields import load_json
from sterna.config.reader import parse_model_config
from sterna.config.types import ModelConfig
from sterna.errors import ConfigError

PRESETS = ("qwen3.6-35b-a3b",)


def preset(name: str) -> ModelConfig:
    """The configuration of a published checkpoint by name; raises `ConfigError` for a name that is not in `PRESETS`."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}, allowed is {', '.join(PRESETS)}")
    folder = files("sterna") / "data" / "presets" / name
    config, generation = (
        load_json((folder / file).read_bytes(), where=f"preset {name} {file}")
        for file in ("config.json", "generation_config.json")
    )
    return parse_model_config(config, generation)
