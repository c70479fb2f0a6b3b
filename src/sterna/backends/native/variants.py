"""Kernel variants: which ones this build holds, which can run here and why not, and which one is used."""

from __future__ import annotations

from typing import TypedDict

from sterna import _native, env
from sterna.errors import BackendError


class Variant(TypedDict):
    """One row of the table that `sterna doctor` prints; ``reason`` is empty when the variant can run."""

    name: str
    available: bool
    reason: str


def variants(*, with_test_only: bool = False) -> list[Variant]:
    """All variants from the slowest to the fastest; those that only tests use on request."""
    return [
        Variant(name=name, available=not reason, reason=reason)
        for name, reason, test_only in _native.variants()
        if with_test_only or not test_only
    ]


def choose_variant(name: str | None = None) -> str:
    """The named variant, else the one that ``STERNA_NATIVE_VARIANT`` names, else the fastest that can run.

    A variant that cannot run is a `BackendError` with the reason: there is no silent fallback.
    """
    name = name or env.get("STERNA_NATIVE_VARIANT")
    if name is None:
        return [variant["name"] for variant in variants() if variant["available"]][-1]
    table = {variant["name"]: variant for variant in variants(with_test_only=True)}
    usable = ", ".join(variant["name"] for variant in variants() if variant["available"])
    if name not in table:
        raise BackendError(f"there is no kernel variant {name!r}, this machine can run {usable}")
    if not table[name]["available"]:
        raise BackendError(
            f"the kernel variant {name} cannot run here: {table[name]['reason']}", hint=f"allowed are {usable}"
        )
    return name
