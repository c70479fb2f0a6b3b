"""What needs a yes, seen through quotes, wrappers, substitutions and nested shells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.agent.danger import danger

DANGEROUS = (
    "rm -rf build", "rm -r -f x", "rm -fR x", "rm --recursive x", "/bin/rm -rf .", "cd a && rm -rf b", "true; rm -r b",
    "sudo rm -rf /", "env A=1 rm -rf x", "A=1 rm -rf x", "xargs rm -rf", "ls | xargs -n 1 rm -r", "timeout 5 rm -rf x",
    "bash -c 'rm -rf x'", 'bash -lc "cd a; rm -rf b"', "eval 'rm -rf x'", "echo $(rm -rf x)", "echo `rm -rf x`",
    "cat <(rm -rf x)", "if true; then rm -rf x; fi", "for i in 1 2; do rm -rf $i; done", "(rm -rf x)", "{ rm -rf x; }",
    "! rm -rf x", "r\\m -rf x", "'rm' -rf x", "$X -rf y", "$(echo rm) -rf y", "rm \\\n -rf x", "echo a\nrm -rf b",
    "find . -name '*.pyc' -delete", "find . -exec rm {} +", "find . -exec sudo rm {} ;",
    "git push --force", "git push -f origin main", "git push origin +main", "git push --force-with-lease",
    "git push origin :main", "git push --delete origin main", "git -C sub push -f", "git clean -fdx", "git clean --force",
    "git reset --hard HEAD~1", "git checkout -f main", "git checkout -- .", "git checkout .", "git restore .",
    "git branch -D topic", "git stash drop", "git stash clear",
    "shred a", "mkfs.ext4 /dev/sda", "dd if=/dev/zero of=disk.img", "rm -rf 'unclosed",
)  # fmt: skip
HARMLESS = (
    "rm a.txt", "rm -f a.txt", "rm -i a", "ls -R", "grep -r rm .", "echo 'rm -rf x'", "python -m unittest", "git push",
    "git push -u origin main", "git clean -n", "git reset HEAD a", "git checkout main", "git checkout -b new", "git branch -d x",
    "git commit -m 'rm -rf everything'", "git stash", "git stash pop", "find . -name '*.py'", "find . -exec grep x {} +",
    "dd if=a of=/dev/null", "cp -r a b", "chmod -R u+w a", "$PYTHON -m pytest", "cat rm", "sed -i 's/rm -r//' a",
    "make clean", "npm run reset", "", "   ", "# rm -rf x is what this does not do", "echo 'unclosed",
)  # fmt: skip


@pytest.mark.parametrize("command", DANGEROUS)
def test_needs_a_yes(command: str) -> None:
    assert danger(command) is not None


@pytest.mark.parametrize("command", HARMLESS)
def test_runs_without_asking(command: str) -> None:
    assert danger(command) is None


def test_depth_is_bounded() -> None:
    command = "rm -rf x"
    for _ in range(10):
        command = f"eval {command}"
    assert danger(command) is not None


@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    assert danger(text) is None or danger(text)
