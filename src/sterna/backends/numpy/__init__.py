"""The reference backend: every op is its numpy oracle. Slow, exact to float32 rounding, for tests and for reading."""

from sterna.backends.numpy.backend import NumpyBackend

__all__ = ["NumpyBackend"]
