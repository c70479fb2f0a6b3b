"""Documents that must stay true: generated pages, links, the changelog, the list of dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sterna import env
from sterna.cli.reference import reference_page

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
LIMITS = {"README.md": 200, "AGENTS.md": 60}


@pytest.mark.parametrize(("page", "make"), [("env.md", env.reference_page), ("cli.md", reference_page)])
def test_generated_pages_are_current(page, make):
    assert (ROOT / "docs" / "reference" / page).read_text() == make(), "run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        destination = (path.parent / file).resolve() if file else path
        assert destination.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(destination), f"{target} has no such heading"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+\s+(.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "limit"), LIMITS.items())
def test_front_pages_stay_short(page, limit):
    assert (ROOT / page).read_text().count("\n") <= limit


def test_paths_that_the_front_pages_name_exist():
    for page in ("README.md", "AGENTS.md", "CONTRIBUTING.md"):
        for path in re.findall(r"`((?:src|csrc|tests|docs|scripts|\.ci)/[\w./-]*)`", (ROOT / page).read_text()):
            assert (ROOT / path).exists(), f"{page} names {path}"


def test_changelog_keeps_its_shape():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert lines[0] == "# Changelog"
    assert "## [Unreleased]" in lines
    sections = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for line in lines:
        if line.startswith("### "):
            assert line[4:] in sections
        elif line.startswith("- "):
            assert len(line.split()) <= 26, f"more than 25 words: {line}"
            assert not line.endswith(".")


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower() for requirement in requirements}


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = names_of(project["project"]["dependencies"]) | names_of(project["build-system"]["requires"])
    for requirements in project["project"]["optional-dependencies"].values():
        declared |= names_of(requirements)
    page = (ROOT / "docs" / "dev" / "dependencies.md").read_text()
    documented = set(re.findall(r"^\| `([\w.-]+)` \|", page, re.MULTILINE))
    assert documented == declared
    reasons = re.findall(r"^\| `[\w.-]+` \| (.*?) \|", page, re.MULTILINE)
    assert all(len(reason.split()) >= 4 for reason in reasons)


def test_constraints_pin_everything_that_is_declared():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = names_of(project["project"]["dependencies"]) | names_of(project["build-system"]["requires"])
    for extra in ("train", "dev"):
        needed |= names_of(project["project"]["optional-dependencies"][extra])
    assert needed <= set(pins)
