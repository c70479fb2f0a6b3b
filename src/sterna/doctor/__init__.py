"""`sterna doctor`: proof on the user's own machine that scheduling and caches do not change a single bit.

run = DoctorRun(llm)
for check in run.checks():           # one Check per property: PASS, FAIL or SKIP with figures
    ...
"""

from sterna.doctor.checks import Check, DoctorRun

__all__ = ["Check", "DoctorRun"]
