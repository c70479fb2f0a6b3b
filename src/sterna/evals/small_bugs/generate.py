"""Whole projects from families: source files, tests with computed expectations, one bug that the tests notice."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from sterna.evals.small_bugs.family import Family, load_families
from sterna.evals.small_bugs.fingerprint import instance_fingerprint
from sterna.evals.small_bugs.inprocess import run_inprocess, time_limit
from sterna.evals.small_bugs.mutate import Mutation, find_mutations
from sterna.evals.small_bugs.naming import MEANINGLESS, MODULES, choose_names, rename
from sterna.evals.small_bugs.project import Project
from sterna.evals.small_bugs.real_code import LICENCE as REAL_CODE_LICENCE
from sterna.evals.small_bugs.real_code import real_families
from sterna.evals.small_bugs.values import WORDS, sample

EVAL_BUCKETS = 10
"""One function text in ten is kept for ``unseen-instances``; training never uses it."""
MAX_EXPECTED_CHARS = 60
FRESH_SHARE = 0.6
KIND_WEIGHTS = {"variable": 0.8, "call": 1.0, "string": 0.7}


class Rejected(Exception):
    """This draw gives no usable function or project; draw again."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One function or class of a project: its text, its name, and the lines of its test methods.

    ``helper`` is a function that it calls, which may stand in a file of its own; empty if there is none.
    """

    family: str
    name: str
    source: str
    tests: tuple[tuple[str, ...], ...]
    fingerprint: str
    helper: str = ""
    helper_name: str = ""


@dataclass(frozen=True, slots=True)
class Draw:
    """Where units come from: families, which of their instances are allowed, and whether they stay as they are.

    ``fresh`` is the share of names that say nothing: training needs them to teach copying, evaluations have none.
    """

    families: tuple[Family, ...]
    accept: Callable[[str], bool]
    verbatim: bool = False
    fresh: float = 0.0


def in_eval_bucket(fingerprint: str) -> bool:
    """Whether a function text belongs to ``unseen-instances``."""
    return int(fingerprint, 16) % EVAL_BUCKETS == 0


def _constants(text: str, rng: Random) -> dict[str, str]:
    pool = {"K": rng.randint(2, 6), "L": rng.randint(10, 30)}
    return {name: str(value) for name, value in pool.items() if re.search(rf"\b{name}\b", text)}


def _with_doc(source: str, doc: str, rng: Random) -> str:
    draw = rng.random()
    if draw > 0.4 or not doc:
        return source
    head, _, body = source.partition("\n")
    if draw > 0.28:
        return f"# {doc}\n{source}"
    return f'{head}\n    """{doc}"""\n{body}'


def make_source(family: Family, rng: Random, *, fresh: float = 0.0) -> tuple[str, str, dict[str, str]]:
    """One instance: its source, its name and the renaming that tests of a class need."""
    body = rng.choice(family.bodies)
    name = rng.choice(family.names)
    fixed = {word for word, _ in family.renames} | set(re.findall(r"(?:self\.|def )(\w+)", body))
    mapping = choose_names(body, rng, fixed=fixed, fresh=fresh) | _constants(body + " ".join(family.edges), rng)
    taken = set(mapping.values())
    if name in taken or re.search(rf"\b{name}\b", body):
        raise Rejected
    extra = {word: rng.choice(pool) for word, pool in family.renames}
    source = rename(body, mapping)
    for word, new in extra.items():
        source = re.sub(rf"\b{word}\b", new, source)
    source = re.sub(r"\bC\b" if family.is_class else r"\bf(?=\()", name, source)
    return source, name, mapping | extra


def _literal(value: Any) -> str:
    text = repr(value)
    if "'" in text and '"' not in text:
        text = text.replace("'", '"')
    return text


def _assertion(call: str, value: Any, rng: Random) -> str:
    if isinstance(value, bool) and rng.random() < 0.6:
        return f"self.assert{value}({call})"
    if value is None:
        return f"self.assertIsNone({call})"
    text = _literal(value)
    if len(text) > MAX_EXPECTED_CHARS or " at 0x" in text:
        raise Rejected
    return f"self.assertEqual({call}, {text})"


def _define(source: str, name: str) -> Callable[..., Any]:
    space: dict[str, Any] = {}
    exec(compile(source, "<family>", "exec"), space)
    found: Callable[..., Any] = space[name]
    return found


def _function_tests(family: Family, source: str, name: str, mapping: dict[str, str], rng: Random) -> list[str]:
    function = _define(source, name)
    cases: list[tuple[Any, ...]] = []
    if family.edges:
        edges = rng.sample(family.edges, min(len(family.edges), rng.randint(1, 2)))
        cases += [ast.literal_eval(rename(edge, mapping)) for edge in edges]
    while len(cases) < rng.randint(3, 4):
        cases.append(tuple(sample(kind, rng) for kind in family.types))
    lines: list[str] = []
    rng.shuffle(cases)
    for case in cases:
        call = f"{name}({', '.join(_literal(value) for value in case)})"
        if len(call) > 70:
            raise Rejected
        try:
            value = function(*copy.deepcopy(case))
        except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
            lines.append(f"with self.assertRaises({type(error).__name__}):\n            {call}")
            continue
        except Exception as error:
            raise Rejected from error
        lines.append(_assertion(call, value, rng))
    return list(dict.fromkeys(lines))


def _class_tests(family: Family, source: str, name: str, mapping: dict[str, str], rng: Random) -> list[list[str]]:
    methods = []
    for script in rng.sample(family.scripts, min(len(family.scripts), 2)):
        numbers = rng.sample(range(1, 10), 3)
        words = rng.sample(WORDS, 2)
        values = dict(zip("ABD", map(str, numbers), strict=True)) | {"W": f'"{words[0]}"', "X": f'"{words[1]}"'}
        space: dict[str, Any] = {}
        exec(compile(source, "<family>", "exec"), space)
        lines = []
        for step in script:
            text = re.sub(r"\bC\b", name, rename(step, {k: v for k, v in mapping.items() if k in "KL"} | values))
            for word, _ in family.renames:
                text = re.sub(rf"\b{word}\b", mapping[word], text)
            if text.startswith("? "):
                lines.append(_assertion(text[2:], eval(text[2:], space), rng))
            elif text.startswith("! "):
                error = text.split()[1]
                lines.append(f"with self.assertRaises({error}):\n            {text.split(' ', 2)[2]}")
            else:
                exec(text, space)
                lines.append(text)
        methods.append(lines)
    return methods


def make_unit(family: Family, rng: Random, *, verbatim: bool = False, fresh: float = 0.0) -> Unit:
    """One tested function or class of ``family``; raises ``Rejected`` when the draw is unusable.

    ``verbatim`` keeps the text as it is: real code has names, comments and literals of its own. ``fresh`` is the share
    of variables with a name that says nothing.
    """
    if verbatim:
        source, name, mapping = family.bodies[0], family.names[0], dict[str, str]()
    else:
        source, name, mapping = make_source(family, rng, fresh=fresh)
    helper, _, main = source.rpartition("\n%%%\n")
    source = f"{helper}\n\n\n{main}" if helper else main
    fingerprint = instance_fingerprint(source)
    with time_limit():
        if family.is_class:
            tests = _class_tests(family, source, name, mapping, rng)
        else:
            lines = _function_tests(family, source, name, mapping, rng)
            cut = rng.randint(1, len(lines) - 1) if len(lines) > 2 and rng.random() < 0.3 else len(lines)
            tests = [part for part in (lines[:cut], lines[cut:]) if part]
    if not any(tests):
        raise Rejected
    text = main if verbatim else _with_doc(main, family.doc, rng)
    helper_name = helper[4 : helper.index("(")] if helper else ""
    return Unit(family.name, name, text, tuple(map(tuple, tests)), fingerprint, helper, helper_name)


def _draw_unit(draw: Draw, rng: Random) -> Unit:
    for _ in range(400):
        try:
            unit = make_unit(rng.choice(draw.families), rng, verbatim=draw.verbatim, fresh=draw.fresh)
        except (Rejected, KeyboardInterrupt):
            continue
        if draw.accept(unit.fingerprint):
            return unit
    raise Rejected


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _test_module(modules: dict[str, list[Unit]], rng: Random, title: str) -> str:
    lines = ["import unittest", ""]
    for module, units in modules.items():
        lines.append(f"from {module} import {', '.join(sorted(unit.name for unit in units))}")
    lines += ["", "", f"class Test{title.title().replace('_', '')}(unittest.TestCase):"]
    for units in modules.values():
        for unit in units:
            for number, body in enumerate(unit.tests):
                suffix = f"_{number + 1}" if len(unit.tests) > 1 else ""
                lines.append(f"    def test_{_snake(unit.name)}{suffix}(self):")
                lines += [f"        {line}" for line in body]
                lines.append("")
    if rng.random() < 0.4:
        lines += ["", 'if __name__ == "__main__":', "    unittest.main()", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _module_text(units: list[Unit], imports: list[str]) -> str:
    parts = [text for unit in units for text in (unit.helper, unit.source) if text]
    return "".join(f"{line}\n" for line in imports) + ("\n\n" if imports else "") + "\n\n\n".join(parts) + "\n"


def _layout(units: list[Unit], rng: Random, *, fresh: float) -> tuple[dict[str, str], dict[str, str]]:
    """The files of a project and, per name of a function or class, the file that holds it."""
    names = rng.sample(MODULES, 2)
    if fresh and rng.random() < fresh:
        names = [f"{word}s" for word in rng.sample(MEANINGLESS, 2)]
    helpers = [unit for unit in units if unit.helper]
    if helpers and rng.random() < 0.6:
        bare = [replace(unit, helper="") for unit in units]
        text = "\n\n\n".join(unit.helper for unit in helpers) + "\n"
        line = f"from {names[1]} import {', '.join(sorted(unit.helper_name for unit in helpers))}"
        files = {f"{names[0]}.py": _module_text(bare, [line]), f"{names[1]}.py": text}
        files[f"test_{names[0]}.py"] = _test_module({names[0]: units}, rng, names[0])
        where = {unit.name: f"{names[0]}.py" for unit in units}
        return files, where | {unit.helper_name: f"{names[1]}.py" for unit in helpers}
    split = len(units) > 1 and rng.random() < 0.3
    groups = {names[0]: units[:1], names[1]: units[1:]} if split else {names[0]: units}
    files = {f"{module}.py": _module_text(part, []) for module, part in groups.items()}
    if split and rng.random() < 0.5:
        for module, part in groups.items():
            files[f"test_{module}.py"] = _test_module({module: part}, rng, module)
    else:
        files[f"test_{names[0]}.py"] = _test_module(groups, rng, names[0])
    where = {name: f"{m}.py" for m, part in groups.items() for unit in part for name in (unit.name, unit.helper_name)}
    return files, where


def _break(files: dict[str, str], path: str, function: str, rng: Random) -> tuple[Mutation, dict[str, str]]:
    """A mutation of ``function`` in ``files`` that the tests notice."""
    candidates = find_mutations(files[path], function=function)
    kinds: dict[str, list[Mutation]] = {}
    for candidate in candidates:
        kinds.setdefault(candidate.kind, []).append(candidate)
    for _ in range(8):
        if not kinds:
            break
        names = sorted(kinds)
        kind = rng.choices(names, [KIND_WEIGHTS.get(name, 1.0) for name in names])[0]
        mutation = kinds[kind].pop(rng.randrange(len(kinds[kind])))
        if not kinds[kind]:
            del kinds[kind]
        broken = {**files, path: mutation.apply(files[path])}
        try:
            run = run_inprocess(broken)
        except SyntaxError:
            continue
        if run.usable_failure:
            return mutation, broken
    raise Rejected


def build_project(rng: Random, draw: Draw, *, split: str, seed: int, units: int) -> Project:
    """One project of ``units`` functions; raises ``Rejected`` when the draw is unusable."""
    drawn: list[Unit] = []
    while len(drawn) < units:
        unit = _draw_unit(draw, rng)
        taken = {name for other in drawn for name in (other.name, other.family, other.helper_name) if name}
        if not taken & {unit.name, unit.family, unit.helper_name}:
            drawn.append(unit)
    files, where = _layout(drawn, rng, fresh=draw.fresh)
    target = rng.choice(drawn)
    function = target.helper_name if target.helper and rng.random() < 0.4 else target.name
    path = where[function]
    mutation, broken = _break(files, path, function, rng)
    old = files[path].split("\n")[mutation.line - 1].strip()
    new = broken[path].split("\n")[mutation.line - 1].strip()
    return Project(
        name=f"{split}-{seed}", split=split, seed=seed, files=broken, fixed_files=files,
        bug=f"{path} line {mutation.line}: `{old}` became `{new}`", family=target.family, function=function,
        path=path, line=mutation.line, kind=mutation.kind, fingerprints=tuple(unit.fingerprint for unit in drawn),
        source=f"standard library, {target.family}" if draw.verbatim else "generated",
        licence=REAL_CODE_LICENCE if draw.verbatim else "Apache-2.0",
    )  # fmt: skip


def _draw_of(split: str) -> Draw:
    if split == "training":
        return Draw(load_families(), lambda fingerprint: not in_eval_bucket(fingerprint), fresh=FRESH_SHARE)
    if split == "unseen-instances":
        return Draw(load_families(), in_eval_bucket)
    if split == "unseen-families":
        return Draw(load_families(held_out=True), lambda _fingerprint: True)
    return Draw(real_families(evaluation=split == "real-code"), lambda _fingerprint: True, verbatim=True)


def generate_from_families(seed: int, split: str, *, units: int | None = None) -> Project:
    """A project of a generated split (``training``, ``training-real-code``, ``unseen-instances``, ``unseen-families``,"""
    rng = Random(f"{split}:{seed}")
    draw = _draw_of(split)
    while True:
        count = units or (1 if draw.verbatim else rng.choices((1, 2, 3), (4, 4, 2))[0])
        try:
            return build_project(rng, draw, split=split, seed=seed, units=count)
        except Rejected:
            continue
