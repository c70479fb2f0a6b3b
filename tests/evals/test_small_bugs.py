"""The projects of ``small-bugs``: really broken, really repairable, the same every time, and none of them in training."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.evals.small_bugs import (
    SPLITS,
    Project,
    generate_project,
    random_repair,
    run_tests,
    split_projects,
    write_project,
)
from sterna.evals.small_bugs.baseline import passes_inprocess
from sterna.evals.small_bugs.family import load_families
from sterna.evals.small_bugs.fingerprint import shape_fingerprint, shape_fingerprints
from sterna.evals.small_bugs.generate import generate_from_families, in_eval_bucket
from sterna.evals.small_bugs.inprocess import run_inprocess
from sterna.evals.small_bugs.real_code import EVALUATION, TRAINING, real_families

SAMPLE = 12


def changed_lines(project: Project) -> list[tuple[str, int]]:
    assert project.files.keys() == project.fixed_files.keys()
    return [
        (path, number)
        for path, text in project.files.items()
        for number, (a, b) in enumerate(
            zip(text.split("\n"), project.fixed_files[path].split("\n"), strict=True), start=1
        )
        if a != b
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_one_line_breaks_the_tests_and_one_line_repairs_them(split: str) -> None:
    for project in split_projects(split, limit=SAMPLE):
        assert changed_lines(project) == [(project.path, project.line)]
        assert run_inprocess(project.fixed_files).passed, project.name
        assert not run_inprocess(project.files).passed, project.name


@pytest.mark.parametrize("split", SPLITS)
def test_a_new_interpreter_agrees(split: str, tmp_path: Path) -> None:
    project = split_projects(split, limit=3)[-1]
    write_project(project, tmp_path)
    assert not run_tests(tmp_path)
    write_project(project, tmp_path, fixed=True)
    assert run_tests(tmp_path)


@pytest.mark.parametrize("split", ["unseen-instances", "unseen-families", "real-code", "training"])
def test_a_seed_is_always_the_same_project(split: str) -> None:
    make = generate_from_families if split == "training" else lambda seed, name: generate_project(seed, name)
    assert make(5, split) == make(5, split)
    assert make(5, split).files != make(6, split).files


def test_hand_written_projects_are_twenty_and_named() -> None:
    projects = split_projects("hand-written")
    assert len(projects) == 20
    assert len({project.name for project in projects}) == 20


def training_shapes() -> set[str]:
    """Syntax trees, names and literals aside, of every function that training can draw."""
    families = [*load_families(), *real_families(evaluation=False)]
    bodies = [piece for family in families for body in family.bodies for piece in body.split("\n%%%\n")]
    return {shape_fingerprint(body) for body in bodies}


@pytest.mark.parametrize("split", ["unseen-families", "real-code", "hand-written"])
def test_no_function_of_an_evaluation_has_the_shape_of_a_training_function(split: str) -> None:
    known = training_shapes()
    for project in split_projects(split, limit=40):
        for path, text in project.fixed_files.items():
            if not Path(path).name.startswith("test"):
                assert not known & set(shape_fingerprints(text)), f"{project.name}: {path}"


def test_families_and_library_functions_are_apart() -> None:
    seen, held_out = load_families(), load_families(held_out=True)
    assert len(seen) >= 80
    assert len(held_out) >= 15
    assert not {f.name for f in seen} & {f.name for f in held_out}
    assert not {name for f in seen for name in f.names} & {name for f in held_out for name in f.names}
    assert not {row[:2] for row in EVALUATION} & {row[:2] for row in TRAINING}


def test_training_never_draws_an_instance_of_the_evaluation() -> None:
    for seed in range(60):
        assert not any(
            in_eval_bucket(fingerprint) for fingerprint in generate_from_families(seed, "training").fingerprints
        )
        assert all(
            in_eval_bucket(fingerprint) for fingerprint in generate_project(seed, "unseen-instances").fingerprints
        )


def test_random_mutation_sometimes_repairs_and_mostly_not() -> None:
    solved = [
        random_repair(project, seed=0, test_runs=6, passes=passes_inprocess)
        for project in split_projects("unseen-instances", limit=40)
    ]
    assert 0 < sum(solved) < 30
