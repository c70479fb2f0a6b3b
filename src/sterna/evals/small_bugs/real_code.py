"""Functions of the standard library as tasks: read from the running interpreter, nothing of it is kept in this repository.

The table names small functions without side effects and the types of sample arguments (``values.TYPES``). Those of
``EVALUATION`` are never used for training. A function that this version of Python does not have is left out.
Licence of all of them: PSF-2.0.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path
from random import Random

from sterna.evals.small_bugs.family import Family

LICENCE = "PSF-2.0"

EVALUATION: tuple[tuple[str, str, str], ...] = (
    ("asynchat", "find_prefix_at_end", "in:abca,xyxx,hello in:cab,xy,lo"),
    ("ast", "_pad_whitespace", "text"),
    ("bisect", "bisect_left", "sorted pos"),
    ("bisect", "bisect_right", "sorted pos"),
    ("calendar", "_prevmonth", "int:1999:2024 int:1:4"),
    ("calendar", "leapdays", "int:1980:2000 int:2001:2024"),
    ("datetime", "_days_before_year", "int:1:2024"),
    ("datetime", "_divide_and_round", "int int:2:5"),
    ("difflib", "_format_range_unified", "nat nat"),
    ("difflib", "_keep_original_ws", "text in:abc,one_two,xy"),
    ("doctest", "_strip_exception_details", "in:a.b.Error:x,KeyError,os.error:no"),
    ("email.base64mime", "header_length", "text"),
    ("email.message", "_parseparam", "in:a=1;b=2,Text;Q=x,abc"),
    ("email.message", "_splitparam", "in:a;b,text;q=1,abc"),
    ("encodings.punycode", "T", "nat int:0:72"),
    ("encodings.punycode", "adapt", "big bool pos"),
    ("enum", "_dedent", "text"),
    ("html", "escape", "in:<a>,a&b,x>y,plain"),
    ("imaplib", "Int2AP", "big"),
    ("ipaddress", "_count_righthand_zero_bits", "nat int:3:8"),
    ("locale", "_strip_padding", "text nat"),
    ("mailcap", "parsefield", "in:a;b;c,text;x,abc int:0:2 int:3:4"),
    ("operator", "countOf", "dups small"),
    ("operator", "indexOf", "dups small"),
    ("platform", "_norm_version", "in:1.2,3.10.4.1,2.0b,07.1"),
    ("pydoc", "cram", "text int:4:9"),
    ("re._compiler", "_generate_overlap_table", "runs"),
    ("string", "capwords", "text"),
    ("tokenize", "_get_normal_name", "in:UTF_8,latin-1,ascii,utf-8-sig,ISO_8859_1"),
    ("tracemalloc", "_format_size", "big bool"),
    ("typing", "_deduplicate", "dups"),
    ("unittest.main", "_convert_select_pattern", "in:test_*,abc,a*b"),
    ("unittest.mock", "_format_call_signature", "word sorted2 dict"),
    ("unittest.util", "sorted_list_difference", "sorted sorted"),
    ("unittest.util", "unorderable_list_difference", "ints ints"),
    ("urllib.parse", "_splitnport", "in:host:80,localhost,a:b,h:"),
    ("urllib.parse", "_splitquery", "in:a?b,x?y?z,path"),
    ("urllib.parse", "_splitvalue", "in:a=1,b,c=d=e"),
    ("xml.dom.domreg", "_parse_feature_string", "text"),
    ("xml.dom.minidom", "_nssplit", "in:a:b,xml,svg:rect:x"),
    ("zipfile", "_gen_crc", "big"),
)

TRAINING: tuple[tuple[str, str, str], ...] = (
    ("calendar", "_nextmonth", "int:1999:2024 int:9:12"),
    ("difflib", "_calculate_ratio", "nat nat"),
    ("difflib", "_format_range_context", "nat nat"),
    ("email._parseaddr", "quote", "text"),
    ("email.utils", "unquote", "in:<a>,abc,<a"),
    ("http.cookiejar", "strip_quotes", "text"),
    ("operator", "concat", "word word"),
    ("operator", "floordiv", "nat pos"),
    ("operator", "truth", "ints"),
    ("typing", "cast", "word int"),
    ("urllib.parse", "_splitattr", "in:a;b,x;y;z,path"),
    ("urllib.parse", "_splitnetloc", "in://a/b,//host,c"),
    ("urllib.parse", "_splitparams", "in:a;b,x/y;z,path"),
    ("urllib.parse", "_splituser", "in:a@b,x@y@z,path"),
    ("urllib.parse", "unwrap", "in:<a>,abc,<URL:x>"),
)


def _without_docstring(source: str) -> str:
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    first = node.body[0]
    if len(node.body) < 2 or not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
        return source
    lines = source.split("\n")
    del lines[first.lineno - 1 : first.end_lineno]
    head = [line for line in lines[: first.lineno - 1] if line.strip()]
    rest = lines[first.lineno - 1 :]
    while rest and not rest[0].strip():
        rest = rest[1:]
    return "\n".join([*head, *rest])


def function_source(module: str, function: str) -> str | None:
    """The text of a top-level function of an installed module, without its docstring; the module is not imported."""
    parent, _, _ = module.rpartition(".")
    if parent and importlib.util.find_spec(parent) is None:
        return None
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    text = Path(spec.origin).read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == function and not node.decorator_list:
            source = ast.get_source_segment(text, node)
            return _without_docstring(source) if source else None
    return None


@lru_cache(maxsize=2)
def real_families(*, evaluation: bool) -> tuple[Family, ...]:
    """One family per function that this Python has; its name is ``module.function``."""
    families = []
    for module, function, types in EVALUATION if evaluation else TRAINING:
        source = function_source(module, function)
        if source is not None:
            families.append(
                Family(f"{module}.{function}", (function,), (), tuple(types.split()), (), "", (source,))
            )  # fmt: skip
    return tuple(families)


def pick(rng: Random, *, evaluation: bool) -> Family:
    """One of the functions at random."""
    return rng.choice(real_families(evaluation=evaluation))
