"""Coercion of raw parameter text by JSON schema, and what is said about what does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.chat.messages import Tool
from sterna.chat.tool_calls import ToolTable

STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}


def table(schema: Any, **more: Any) -> ToolTable:
    return ToolTable([Tool("run", "", {"type": "object", "properties": {"x": schema}, **more})])


@pytest.mark.parametrize(
    ("schema", "raw", "value"),
    [
        (STRING, "5", "5"),
        (STRING, " true ", " true "),
        (STRING, "", ""),
        (INTEGER, "5", 5),
        (INTEGER, " -7\n", -7),
        (INTEGER, "+3", 3),
        (INTEGER, "5.0", 5),
        ({"type": "number"}, "5", 5),
        ({"type": "number"}, "-2.5e3", -2500.0),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        (NULL, "null", None),
        (NULL, "None", None),
        ({"type": "array"}, '[1, "a"]', [1, "a"]),
        ({"type": "object"}, '{"a": {"b": []}}', {"a": {"b": []}}),
        ({"enum": ["a", "b"]}, "b", "b"),
        ({"type": "string", "enum": ["1", "2"]}, "1", "1"),
        ({"type": "integer", "enum": [1, 2]}, "2", 2),
        ({"enum": [1, "x", None]}, "null", None),
        ({"const": "yes"}, "yes", "yes"),
        ({"anyOf": [STRING, NULL]}, "null", None),
        ({"anyOf": [STRING, NULL]}, "nothing", "nothing"),
        ({"anyOf": [STRING, INTEGER]}, "12", 12),
        ({"oneOf": [INTEGER, {"type": "array"}]}, "[3]", [3]),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["integer", "string"]}, "4x", "4x"),
        ({"anyOf": [{"anyOf": [INTEGER, NULL]}, {"type": "boolean"}]}, "true", True),
        ({"allOf": [INTEGER]}, "4", 4),
        ({"$ref": "#/$defs/count"}, "4", 4),
        ({}, "plain text", "plain text"),
        ({}, "[1]", [1]),
        ({}, "7", 7),
        ({}, "007", "007"),
        ({}, '"quoted"', '"quoted"'),
        ({"description": "anything"}, "null", None),
    ],
)
def test_values(schema: Any, raw: str, value: Any) -> None:
    tools = table(schema, **{"$defs": {"count": INTEGER}})
    found, problem = tools.coerce("run", "x", raw)
    assert problem is None
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("schema", "raw", "expected"),
    [
        (INTEGER, "five", "an integer"),
        (INTEGER, "5.5", "an integer"),
        (INTEGER, "true", "an integer"),
        (INTEGER, "", "an integer"),
        (INTEGER, "9" * 5000, "an integer"),
        ({"type": "number"}, "NaN", "a number"),
        ({"type": "number"}, "1,5", "a number"),
        ({"type": "boolean"}, "yes", "true or false"),
        ({"type": "array"}, '{"a": 1}', "a JSON array"),
        ({"type": "array"}, "a, b", "a JSON array"),
        ({"type": "array"}, "[" * 100_000, "a JSON array"),
        ({"type": "array"}, "[" * 200 + "]" * 200, "a JSON array"),
        ({"type": "object"}, "{'a': 1}", "a JSON object"),
        ({"enum": ["a", "b"]}, "c", 'one of "a", "b"'),
        ({"type": "integer", "enum": [1, 2]}, "3", "one of 1, 2"),
        ({"enum": [1]}, "true", "one of 1"),
        ({"anyOf": [INTEGER, NULL]}, "x", "an integer or null"),
    ],
)
def test_what_does_not_fit_is_said(schema: Any, raw: str, expected: str) -> None:
    value, problem = table(schema).coerce("run", "x", raw)
    assert value == raw
    assert problem is not None
    assert problem.startswith("tool 'run': parameter 'x' is ") and problem.endswith(f"expected {expected}")
    assert len(problem) < 400


def test_names() -> None:
    tools = table(STRING, required=["x"], additionalProperties=False)
    assert tools.problems("run", ["x"]) == []
    assert tools.problems("walk", []) == ["unknown tool 'walk', allowed are run"]
    assert tools.problems("run", []) == ["tool 'run': required parameter 'x' is missing, expected a string"]
    assert tools.problems("run", ["x", "y"]) == ["tool 'run': unknown parameter 'y', allowed are x"]
    assert ToolTable([]).problems("run", []) == ["unknown tool 'run', no tools are available"]


@pytest.mark.parametrize(
    ("schema", "is_text"),
    [
        (STRING, True),
        ({"type": "string", "enum": ["a"]}, True),
        ({"anyOf": [STRING, STRING]}, True),
        ({"anyOf": [STRING, NULL]}, False),
        (INTEGER, False),
        ({}, False),
    ],
)
def test_what_can_be_passed_on_at_once(schema: Any, is_text: bool) -> None:
    assert table(schema).is_text("run", "x") is is_text
    assert table(schema).is_text("run", "unknown")
    assert table(schema).is_text("walk", "x")
    assert table(schema, additionalProperties=schema).is_text("run", "unknown") is is_text


SCHEMA = st.recursive(
    st.sampled_from([{}, *({"type": kind} for kind in ("string", "integer", "number", "array", "object", "what", 7))]),
    lambda inner: st.one_of(
        st.builds(lambda items: {"anyOf": items}, st.lists(inner, max_size=3)),
        st.builds(lambda items: {"enum": items}, st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3)),
        st.just({"$ref": "#/properties/x"}),
        st.just({"type": []}),
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(SCHEMA, st.text(max_size=12))
def test_no_schema_crashes_it(schema: Any, raw: str) -> None:
    tools = table(schema, required=["x", "y"])
    value, _ = tools.coerce("run", "x", raw)
    json.dumps(value)
    assert len(tools.problems("run", [])) == 2
    if tools.is_text("run", "x"):
        assert value == raw
