"""Small broken Python projects: the tasks of ``sterna eval small-bugs`` and of Sternula's training data."""

from sterna.evals.small_bugs.baseline import random_repair
from sterna.evals.small_bugs.project import Project, run_tests, write_project
from sterna.evals.small_bugs.splits import SPLITS, generate_project, split_projects

__all__ = ["SPLITS", "Project", "generate_project", "random_repair", "run_tests", "split_projects", "write_project"]
