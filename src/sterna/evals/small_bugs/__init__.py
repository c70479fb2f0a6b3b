"""Small broken Python projects: the tasks of ``sterna eval small-bugs`` and of Sternula's training data."""
