"""What a tool's JSON schema says about the raw text of a parameter: its type, its value, what is wrong with it.

Problems are written for the model: they name the tool, the parameter, the value and what is expected, so that it can
repair the call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sterna.chat.messages import Tool

_SHOWN_CHARACTERS = 200
_MAX_REFERENCES = 16
_MAX_DEPTH = 100
_ARTICLE = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a JSON array",
    "object": "a JSON object",
}
_INTEGER = re.compile(r"[+-]?[0-9]+(\.0*)?", re.ASCII)


class ToolTable:
    """The tools of a request by name."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def is_text(self, tool: str, parameter: str) -> bool:
        """Whether a parameter's raw text is its value, so that it can be passed on while it is being written."""
        schema = self._schema(tool, parameter)
        if schema is None:
            return True
        alternatives = _alternatives(schema, self._root(tool))
        return all(option.get("type") == "string" for option in alternatives)

    def coerce(self, tool: str, parameter: str, raw: str) -> tuple[Any, str | None]:
        """The value of a parameter, and the problem if the text does not fit the schema; the value is then the text."""
        schema = self._schema(tool, parameter)
        if schema is None:
            return raw, None
        options = _alternatives(schema, self._root(tool))
        # Text fits everything, so it is tried last.
        for option in sorted(options, key=lambda option: option.get("type") == "string"):
            found, value = _fit(raw, option)
            if found:
                return value, None
        expected = " or ".join(dict.fromkeys(map(_describe, options)))
        return raw, f"tool {tool!r}: parameter {parameter!r} is {_shown(raw)}, expected {expected}"

    def problems(self, tool: str, parameters: Iterable[str]) -> list[str]:
        """What is wrong with the names of a call: an unknown tool, unknown parameters, missing parameters."""
        if tool not in self._tools:
            allowed = f"allowed are {', '.join(self._tools)}" if self._tools else "no tools are available"
            return [f"unknown tool {_shown(tool)}, {allowed}"]
        given = set(parameters)
        root = self._root(tool)
        properties = _mapping(root.get("properties"))
        found = []
        if root.get("additionalProperties") is False:
            allowed = ", ".join(properties) or "none"
            unknown = sorted(given - set(properties))
            found += [f"tool {tool!r}: unknown parameter {_shown(name)}, allowed are {allowed}" for name in unknown]
        required = root.get("required")
        for name in required if isinstance(required, list) else []:
            if name not in given:
                options = _alternatives(_mapping(properties.get(name)), root)
                expected = " or ".join(dict.fromkeys(map(_describe, options)))
                found.append(f"tool {tool!r}: required parameter {name!r} is missing, expected {expected}")
        return found

    def _root(self, tool: str) -> Mapping[str, Any]:
        return _mapping(self._tools[tool].parameters) if tool in self._tools else {}

    def _schema(self, tool: str, parameter: str) -> Mapping[str, Any] | None:
        """The schema of a parameter; ``None`` where nothing is known about it."""
        root = self._root(tool)
        properties = _mapping(root.get("properties"))
        schema = properties.get(parameter, root.get("additionalProperties"))
        return schema if isinstance(schema, Mapping) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _alternatives(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """The schema as a list of schemas with at most one type each: references, unions and lists of types resolved."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and depth < _MAX_REFERENCES:
        return _alternatives(_referenced(reference, root), root, depth + 1)
    for union in ("anyOf", "oneOf", "allOf"):
        options = schema.get(union)
        if isinstance(options, list) and options and depth < _MAX_REFERENCES:
            merged = [{**schema, union: None, **_mapping(option)} for option in options]
            return [found for option in merged for found in _alternatives(option, root, depth + 1)]
    kinds = schema.get("type")
    if isinstance(kinds, list) and kinds:
        return [{**schema, "type": kind} for kind in kinds]
    return [schema]


def _referenced(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    node: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        node = _mapping(node).get(name.replace("~1", "/").replace("~0", "~"))
    return _mapping(node)


def _fit(raw: str, schema: Mapping[str, Any]) -> tuple[bool, Any]:
    """Whether the text is a value of a schema without alternatives, and that value."""
    found, value = _fit_type(raw, schema.get("type"))
    allowed = schema.get("enum")
    if "const" in schema:
        allowed = [schema["const"]]
    if not isinstance(allowed, list):
        return found, value
    for candidate in (value, raw) if found else (raw,):
        for item in allowed:
            # 1 and true are equal in Python and different in JSON.
            if item == candidate and isinstance(item, bool) == isinstance(candidate, bool):
                return True, item
    return False, None


def _fit_type(raw: str, kind: object) -> tuple[bool, Any]:
    text = raw.strip()
    if kind == "string":
        return True, raw
    if kind == "boolean":
        return text.lower() in ("true", "false"), text.lower() == "true"
    if kind == "null":
        return text.lower() in ("null", "none"), None
    if kind == "integer" and _INTEGER.fullmatch(text):
        text = text.partition(".")[0].removeprefix("+")
    found, value = _decode(text)
    if kind == "integer":
        return found and isinstance(value, int) and not isinstance(value, bool), value
    if kind == "number":
        return found and isinstance(value, int | float) and not isinstance(value, bool), value
    if kind == "array":
        return found and isinstance(value, list), value
    if kind == "object":
        return found and isinstance(value, dict), value
    # No type: what is JSON beyond doubt is taken as JSON, everything else is text.
    is_json = found and (isinstance(value, list | dict | bool) or value is None or json.dumps(value) == text)
    return True, value if is_json and not isinstance(value, str) else raw


def _decode(text: str) -> tuple[bool, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False, None
    return _is_shallow(value, _MAX_DEPTH), value


def _is_shallow(value: object, depth: int) -> bool:
    """Whether a value can be written again without reaching the interpreter's limit of recursion."""
    if not isinstance(value, list | dict):
        return True
    items = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in items)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _describe(schema: Mapping[str, Any]) -> str:
    allowed = schema.get("enum")
    if "const" in schema:
        allowed = [schema["const"]]
    if isinstance(allowed, list):
        return "one of " + ", ".join(json.dumps(item, ensure_ascii=False) for item in allowed)
    kind = schema.get("type")
    return _ARTICLE.get(kind, "a value") if isinstance(kind, str) else "a value"


def _shown(value: str) -> str:
    return repr(value) if len(value) <= _SHOWN_CHARACTERS else repr(value[:_SHOWN_CHARACTERS]) + "…"
