"""What Sternula says: tasks, reasons for an edit, answers in a chat."""

from __future__ import annotations

TASKS = (
    "The tests fail. Fix the bug.",
    "Make the tests pass.",
    "Please fix the failing test.",
    "Find and fix the bug in this project.",
    "One test fails. Repair the code so that all tests pass.",
    "There is a bug in this code. Fix it.",
    "Fix this project.",
    "Fix the failing tests.",
    "Something is broken here. Please repair it.",
    "Debug this and make the tests green.",
    "Why do the tests fail? Fix it.",
    "Run the tests and fix what is wrong.",
)
QUESTIONS = ("Do the tests pass?", "Run the tests. Do they pass?", "Are the tests green?", "Is this project all right?")
DEFAULT_TASK = "Fix the bug. The tests must pass."

REASONS = {
    "compare": "The comparison is wrong.",
    "operator": "The operator is wrong.",
    "missing_one": "It is off by one.",
    "accumulate": "It must accumulate.",
    "and_or": "The logic is wrong.",
    "not": "The condition is inverted.",
    "sign": "The index is wrong.",
    "branches": "The branches are swapped.",
    "boolean": "The truth value is wrong.",
    "number": "The number is wrong.",
    "string": "The string is wrong.",
    "variable": "The wrong name is used.",
    "return": "The returned value is incomplete.",
    "call": "The wrong function is called.",
    "missing_call": "A call is missing.",
    "swapped": "The arguments are swapped.",
    "range_end": "The range ends at the wrong place.",
    "range_start": "The range starts at the wrong place.",
    "slice": "The slice ends at the wrong place.",
    "index": "The index is wrong.",
    "break": "The loop ends at the wrong place.",
}

CHAT = (
    ("Hello", "Hello! I am Sternula. Give me a small Python project with a failing test and I try to fix it."),
    ("Hi", "Hello! I am Sternula. Give me a small Python project with a failing test and I try to fix it."),
    ("Who are you?", "I am Sternula, a very small model. I repair small Python projects."),
    ("What are you?", "I am Sternula, a very small model. I repair small Python projects."),
    ("What can you do?", "I can fix one small bug in a small Python project: I run the tests, read the code and edit a line."),
    ("What is your name?", "My name is Sternula."),
    ("Help", "Run `sterna code` in a folder with a failing test, and I try to fix the bug."),
    ("Can you help me?", "Yes: run `sterna code` in a folder with a failing test, and I try to fix the bug."),
    ("Tell me a joke", "I only know one trade: fixing small bugs in Python."),
    ("What is Python?", "Python is a programming language."),
    ("Thanks", "You are welcome."),
    ("Thank you!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("How are you?", "Fine, thank you. Do you have a failing test for me?"),
)  # fmt: skip
