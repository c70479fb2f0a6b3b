"""Runs a chat template from a checkpoint without trusting it.

The environment is Jinja's immutable sandbox with the options that chat templates of this family are written for.
Added here: a limit of time, checked in every round of a loop and every call of a macro; a limit of size, for the
output and for what single operations can build; and a short list of the methods, filters and functions that there
are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sterna.errors import SternaError, TemplateError

TIME_LIMIT_S = 20.0
# Texts of messages are not in it: the template sees short stand-ins for them.
OUTPUT_LIMIT_CHARACTERS = 16 * 2**20

_STRING_METHODS = frozenset(
    {
        "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "isnumeric", "isspace",
        "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
        "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
    }
)  # fmt: skip
_FILTERS = frozenset(
    {
        "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
        "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
        "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum", "title", "trim",
        "unique", "upper",
    }
)  # fmt: skip
ToJson = Callable[..., str]


class SandboxedTemplate:
    """One compiled template."""

    def __init__(self, source: str) -> None:
        """Compiles ``source``.

        Raises:
            TemplateError: a syntax error, or a filter or tag that is not allowed.
        """
        self._environment = _Environment()
        try:
            tree = self._environment.parse(source)
            _add_checks(tree)
            tree.set_environment(self._environment)
            code = self._environment.compile(tree)
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.globals)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the chat template cannot be compiled: {error}") from error

    def render(
        self,
        variables: Mapping[str, Any],
        *,
        to_json: ToJson,
        time_limit_s: float = TIME_LIMIT_S,
        output_limit: int = OUTPUT_LIMIT_CHARACTERS,
    ) -> str:
        """The output. ``to_json`` stands behind the filter ``tojson`` (called as ``json.dumps`` is); limits in seconds
        and characters.

        Raises:
            TemplateError: the template raises, fails or exceeds a limit.
        """
        limits = _Limits(time_limit_s, output_limit)
        chunks: list[str] = []
        try:
            for chunk in self._template.generate({**variables, _LIMITS: limits, _TO_JSON: to_json}):
                limits.spend(len(chunk))
                chunks.append(chunk)
        except SternaError:
            raise
        except Exception as error:
            raise TemplateError(f"the chat template failed: {error}") from error
        return "".join(chunks)


# Names that no template can spell, so none can read or replace what stands behind them.
_LIMITS = "limits of this rendering"
_TO_JSON = "tojson of this rendering"


class _Limits:
    """What one rendering may still use."""

    def __init__(self, time_limit_s: float, output_limit: int) -> None:
        self._time_limit_s = time_limit_s
        self._deadline = time.monotonic() + time_limit_s
        self._characters_left = self.output_limit = output_limit

    def tick(self) -> None:
        """Checks the clock."""
        if time.monotonic() > self._deadline:
            raise TemplateError(f"the chat template ran longer than {self._time_limit_s:g} s")

    def spend(self, characters: int) -> None:
        """Takes output into account."""
        self.tick()
        self._characters_left -= characters
        if self._characters_left < 0:
            self.refuse()

    def check_size(self, size: int) -> None:
        """Refuses a value that is larger than the whole output may be."""
        if size > self.output_limit:
            self.refuse()

    def check_printable(self, value: Any) -> None:
        """Refuses a value whose text would be too large, before that text is made."""
        size, pending = 0, [value]
        while pending:
            item = pending.pop()
            size += len(item) + 1 if isinstance(item, str) else 8
            if isinstance(item, Mapping):
                pending += [*item, *item.values()]
            elif isinstance(item, list | tuple):
                pending += item
            if size > self.output_limit:
                self.refuse()

    def refuse(self) -> None:
        """Raises the error for too much output."""
        raise TemplateError(f"the chat template produces more than {self.output_limit:,} characters")


class _Checks(Extension):
    """Functions that compiled templates call and cannot name."""

    tags: set[str] = set()  # noqa: RUF012 (declared so by the base class)

    @jinja2.pass_context
    def tick(self, context: jinja2.runtime.Context) -> str:
        """One round of a loop or one call of a macro."""
        context[_LIMITS].tick()
        return ""

    @jinja2.pass_context
    def concat(self, context: jinja2.runtime.Context, *values: Any) -> str:
        """The operator ``~`` with a limit of size."""
        context[_LIMITS].check_printable(values)
        return "".join(map(str, values))

    @jinja2.pass_context
    def binary(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """The operators ``+``, ``*``, ``**`` and ``%`` with a limit of size."""
        limits: _Limits = context[_LIMITS]
        sized = (str, list, tuple)
        if operator == "+":
            if isinstance(left, sized) and isinstance(right, sized):
                limits.check_size(len(left) + len(right))
            return left + right
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, sized) and isinstance(other, int):
                    limits.check_size(len(one) * max(other, 0))
            if isinstance(left, int) and isinstance(right, int):
                limits.check_size(left.bit_length() + right.bit_length())
            return left * right
        if isinstance(left, str):
            raise TemplateError("the chat template formats text with %, which is not allowed")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            limits.check_size(max(left.bit_length(), 1) * max(right, 0))
        return left**right if operator == "**" else left % right


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with our limits, functions and filters."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Checks],
            finalize=_check_printable,
        )
        self.filters = {name: function for name, function in self.filters.items() if name in _FILTERS}
        self.filters |= {"tojson": _to_json, "string": _to_text, "join": _join, "replace": _replace}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals["raise_exception"] = _raise_exception

    def wrap_str_format(self, value: Any) -> Any:
        """Refuses ``str.format``, whose widths build texts of any length."""
        if getattr(value, "__self__", None).__class__ is str and value.__name__ in ("format", "format_map"):
            raise TemplateError(f"the chat template calls str.{value.__name__}, which is not allowed")
        return super().wrap_str_format(value)

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function or an allowed method of a string."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = obj.__name__
            if name not in _STRING_METHODS:
                raise TemplateError(f"the chat template calls str.{name}, which is not allowed")
            context[_LIMITS].check_size(_size_of_result(owner, name, args))
        return super().call(context, obj, *args, **kwargs)


def _size_of_result(owner: str, name: str, args: tuple[Any, ...]) -> int:
    """An upper bound for the characters that a method of a string returns."""
    if name == "replace" and len(args) >= 2:
        return len(owner) + owner.count(str(args[0])) * len(str(args[1]))
    if name == "join" and args:
        return sum(len(str(item)) + len(owner) for item in args[0])
    return len(owner)


@jinja2.pass_context
def _check_printable(context: jinja2.runtime.Context, value: Any) -> Any:
    if not isinstance(value, str):
        context[_LIMITS].check_printable(value)
    return value


@jinja2.pass_context
def _to_text(context: jinja2.runtime.Context, value: Any) -> str:
    return str(_check_printable(context, value))


@jinja2.pass_context
def _join(context: jinja2.runtime.Context, values: Any, d: str = "", attribute: str | None = None) -> str:
    items = [value if attribute is None else context.environment.getitem(value, attribute) for value in values]
    context[_LIMITS].check_printable(items)
    context[_LIMITS].check_size(len(items) * len(d))
    return str(d).join(map(str, items))


@jinja2.pass_context
def _replace(context: jinja2.runtime.Context, text: Any, old: str, new: str) -> str:
    context[_LIMITS].check_size(_size_of_result(str(text), "replace", (old, new)))
    return str(text).replace(old, new)


@jinja2.pass_context
def _to_json(
    context: jinja2.runtime.Context,
    value: Any,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateError(f"tojson has indent {indent}, allowed is 0 to 16")
    context[_LIMITS].check_printable(value)
    to_json: ToJson = context[_TO_JSON]
    return to_json(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateError(f"the chat template refuses the conversation: {message}")


_CHECKED_OPERATORS = (nodes.Add, nodes.Mul, nodes.Pow, nodes.Mod)


def _add_checks(tree: nodes.Template) -> None:
    """Puts a tick into every loop and macro, and our functions in place of operators that can build large values."""
    loops: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
        *tree.find_all(nodes.For),
        *tree.find_all(nodes.Macro),
        *tree.find_all(nodes.CallBlock),
    ]
    for node in loops:
        node.body.insert(0, nodes.ExprStmt(_check("tick", []), lineno=node.lineno))
    _replace_operators(tree)


def _replace_operators(node: nodes.Node) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _checked(value))
        elif isinstance(value, list):
            setattr(node, name, [_checked(item) if isinstance(item, nodes.Node) else item for item in value])


def _checked(node: nodes.Node) -> nodes.Node:
    _replace_operators(node)
    if isinstance(node, nodes.Concat):
        return _check("concat", node.nodes)
    if isinstance(node, _CHECKED_OPERATORS):
        return _check("binary", [nodes.Const(node.operator), node.left, node.right])
    return node


def _check(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.ExtensionAttribute(_Checks.identifier, name), arguments, [], None, None)
