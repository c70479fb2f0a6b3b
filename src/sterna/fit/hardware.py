"""Machines by name: the table `data/hardware.toml`, and names that say their memory themselves."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from sterna.backends.host_memory import available_host_bytes
from sterna.errors import UsageError

MIB, GIB = 1 << 20, 1 << 30
# Of a card whose driver we cannot ask, and of a machine that also runs a system; see the head of hardware.toml.
GPU_RESERVED_BYTES = 600 * MIB
RAM_RESERVED_BYTES = 2 * GIB
_CARDS = re.compile(r"(?:(\d{1,2})x)?(\d{1,4})g")
_RAM = re.compile(r"ram:(\d{1,5})g")


@dataclass(frozen=True, slots=True)
class Hardware:
    """``devices`` equal devices; of the memory of each, ``usable_bytes`` are left for a model (``None``: unknown)."""

    key: str
    name: str
    kind: str
    devices: int
    usable_bytes: int | None

    @property
    def total_usable_bytes(self) -> int | None:
        """Of all devices together."""
        return None if self.usable_bytes is None else self.devices * self.usable_bytes


def hardware_names() -> tuple[str, ...]:
    """The names in the table; `find_hardware` takes more."""
    return tuple(_table())


def find_hardware(key: str) -> Hardware:
    """A machine of the table, ``16g``, ``2x24g`` or ``ram:64g``; `UsageError` for any other name."""
    name = key.strip().lower()
    if entry := _table().get(name):
        usable = (entry["memory_mib"] - entry["reserved_mib"]) * MIB
        return Hardware(name, entry["name"], entry["kind"], entry["devices"], usable)
    if (match := _CARDS.fullmatch(name)) and int(match[2]) and int(match[1] or 1):
        devices, size = int(match[1] or 1), int(match[2])
        words = f"{devices} cards of {size} GB" if devices > 1 else f"a card of {size} GB"
        return Hardware(name, words, "gpu", devices, max(0, size * GIB - GPU_RESERVED_BYTES))
    if (match := _RAM.fullmatch(name)) and int(match[1]):
        size = int(match[1])
        return Hardware(name, f"a machine with {size} GB of RAM", "ram", 1, max(0, size * GIB - RAM_RESERVED_BYTES))
    raise UsageError(
        f"hardware is {key!r}, allowed is {', '.join(_table())}, or a size such as 16g, 2x24g or ram:64g",
        hint="a new machine is one table in data/hardware.toml",
    )


def this_machine(memory_bytes: int | None = None) -> Hardware:
    """This machine with the memory that is free now, or with the given amount."""
    if memory_bytes is None:
        return Hardware("here", "this machine, free memory", "ram", 1, available_host_bytes())
    return Hardware("given", "the given memory", "ram", 1, memory_bytes)


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("sterna") / "data" / "hardware.toml").read_text())
