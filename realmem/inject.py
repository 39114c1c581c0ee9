"""Making attempts fail on request, as Linux's fault injection does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from realmem._core.inject import POINTS, Injection
from realmem.arguments import as_int

if TYPE_CHECKING:
    from realmem._core.machine import MachineCore

MOST = 2**63 - 1


def injection(
    core: MachineCore,
    point: str,
    nth: int | None,
    probability: float,
    times: int | None,
    seed: int,
) -> Injection:
    """
    Check the arguments of :meth:`realmem.Machine.inject` and make its context manager.

    :raises ValueError: an unknown point, a number out of range, or nothing that could fail.
    :raises TypeError: arguments of other types.
    """
    if point not in POINTS:
        raise ValueError(f"nothing to inject at {point!r}: the points are {', '.join(POINTS)}")
    if isinstance(probability, bool) or not isinstance(probability, (int, float)):
        raise TypeError(f"probability must be a number, not {probability!r}")
    if math.isnan(probability) or not 0 <= probability <= 1:
        raise ValueError(f"probability must be within 0 and 1: {probability}")
    number = 0 if nth is None else as_int(nth, "nth", 1, MOST)
    if not number and not probability:
        raise ValueError("nothing would fail: give nth or a probability")
    if number and probability:
        raise ValueError("give nth or a probability, not both")
    if times is not None:
        most = as_int(times, "times", 1, MOST)
    else:
        most = 1 if number else -1
    return Injection(
        core, POINTS.index(point), number, float(probability), most, as_int(seed, "seed", 0, MOST)
    )
