"""What of a model fits where: exact bytes per precision, on this machine and on others."""

from sterna.fit.hardware import Hardware, find_hardware, hardware_names, this_machine
from sterna.fit.plan import Plan, make_plan
from sterna.fit.precision import PRECISIONS, stored_bytes

__all__ = [
    "PRECISIONS",
    "Hardware",
    "Plan",
    "find_hardware",
    "hardware_names",
    "make_plan",
    "stored_bytes",
    "this_machine",
]
