"""Typed, strict access to one JSON object: every key is either used, known to be inert, or an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from sterna.errors import ConfigError

MISSING = object()


def load_json(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse a JSON object; duplicate keys, NaN, invalid UTF-8 and anything but an object raise `ConfigError`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ConfigError(f"{where} has the key {key!r} twice")
            result[key] = value
        return result

    def refuse(constant: str) -> Any:
        raise ConfigError(f"{where} holds {constant}, allowed are finite numbers")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where} holds a {type(value).__name__}, expected is a JSON object")
    return value


class Fields:
    """A reader over one JSON object that remembers which keys were used; `finish` refuses the rest."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self.used: set[str] = set()

    def fail(self, key: str, allowed: str, *, hint: str | None = None) -> ConfigError:
        """An error about the value of one key."""
        return ConfigError(f"{self.where}.{key} is {json.dumps(self.values.get(key))}, allowed is {allowed}", hint=hint)

    def get(self, key: str, default: Any = MISSING) -> Any:
        """The raw value; a missing key without default raises `ConfigError`."""
        self.used.add(key)
        if key in self.values:
            return self.values[key]
        if default is MISSING:
            raise ConfigError(f"{self.where} lacks the key {key!r}")
        return default

    def integer(self, key: str, default: Any = MISSING, *, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        """An integer in a range; a default is returned as it is."""
        value = self.get(key, default)
        if key not in self.values:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.fail(key, f"an integer from {minimum} to {maximum}")
        return value

    def optional_integer(self, key: str, *, minimum: int = 0) -> int | None:
        """An integer, or ``None`` for null or a missing key."""
        return None if self.get(key, None) is None else self.integer(key, minimum=minimum)

    def number(self, key: str, default: Any = MISSING, *, above: float = 0.0, maximum: float = 1e12) -> float:
        """A finite number in ``(above, maximum]``."""
        value = self.get(key, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not above < value <= maximum:
            raise self.fail(key, f"a number above {above:g} up to {maximum:g}")
        return float(value)

    def boolean(self, key: str, default: Any = MISSING) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def section(self, key: str) -> Mapping[str, Any] | None:
        """A nested object, or ``None`` for null or a missing key."""
        value = self.get(key, None)
        if value is not None and not isinstance(value, dict):
            raise self.fail(key, "a JSON object")
        return value

    def require(self, key: str, *allowed: Any) -> None:
        """A key that may be absent, but if present changes the computation unless it has one of these values."""
        value = self.get(key, allowed[0])
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise self.fail(key, " or ".join(json.dumps(each) for each in allowed))

    def finish(self, inert: frozenset[str]) -> None:
        """Refuse every key that was neither used nor is known to change nothing."""
        for key in self.values:
            if key not in self.used and key not in inert:
                raise ConfigError(
                    f"{self.where} has the unknown key {key!r}",
                    hint="this checkpoint may need features that are not implemented; they are not ignored silently",
                )
