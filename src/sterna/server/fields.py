"""Reading the fields of a JSON request: the right type or an error that names the field."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sterna.server.errors import FieldError

LOGGER = logging.getLogger("sterna.server")
_MAX_NOTED = 1000
_noted: set[str] = set()
_KIND = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
}


def text(body: Mapping[str, Any], name: str, default: str = "") -> str:
    """A string; ``default`` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _wrong(name, value, str)
    return value


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A truth value; ``default`` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(name, value, bool)
    return value


def whole(body: Mapping[str, Any], name: str) -> int | None:
    """A whole number; ``None`` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, value, int)
    if abs(value) >= 2**64:
        raise FieldError(name, "is too large, allowed is below 2**64")
    return value


def number(body: Mapping[str, Any], name: str) -> float | None:
    """A number; ``None`` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(name, value, float)
    if abs(value) > 1e300:
        raise FieldError(name, "is too large")
    return float(value)


def mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object; empty where it is absent or null."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, value, dict)
    return value


def mappings(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A list of objects; empty where it is absent or null."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(name, value, list)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise _wrong(f"{name}[{index}]", item, dict)
    return value


def strings(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A string or a list of strings; empty where it is absent or null."""
    value = body.get(name)
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _wrong(name, value, list)
    for item in items:
        if not isinstance(item, str):
            raise _wrong(name, item, str)
    return tuple(items)


def refuse(body: Mapping[str, Any], names: Iterable[str], *, why: str) -> None:
    """Refuse fields that change the answer and cannot be honoured; null, false, zero and empty ask for nothing."""
    for name in names:
        if body.get(name):
            raise FieldError(name, why)


def note_unknown(where: str, body: Mapping[str, Any], known: Iterable[str]) -> None:
    """Log names that nothing reads, each once."""
    for name in set(body) - set(known):
        label = f"{where}: {name[:80]!r}"
        if label not in _noted and len(_noted) < _MAX_NOTED:
            _noted.add(label)
            LOGGER.info("ignored an unknown field of %s", label)


def first_present(body: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of several names that is present and not null."""
    return next((name for name in names if body.get(name) is not None), None)


def _wrong(name: str, value: object, kind: type) -> FieldError:
    return FieldError(name, f"is {_describe(value)}, allowed is {_KIND[kind]}")


def _describe(value: object) -> str:
    if value is None:
        return "null"
    return _KIND.get(type(value), type(value).__name__)
