"""A small broken project for tests of the agent."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''def clamp(value, low, high):
    """Value, but not below low and not above high."""
    if value < low:
        return low
    if value > high:
        return low
    return value
'''
TEST = """import unittest

from clamp import clamp


class ClampTest(unittest.TestCase):
    def test_inside(self):
        self.assertEqual(clamp(3, 0, 5), 3)

    def test_above(self):
        self.assertEqual(clamp(9, 0, 5), 5)


if __name__ == "__main__":
    unittest.main()
"""
RUN_TESTS = "python -m unittest -f 2>&1 | tail -n 20"
TASK = "Fix the bug. The tests must pass."


def write_broken_project(directory: Path) -> Path:
    """Two files whose tests fail until line 6 of clamp.py is repaired."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "clamp.py").write_text(SOURCE)
    (directory / "test_clamp.py").write_text(TEST)
    return directory
