"""The floor under our faults: bare handlers that make the same host calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realmem.bench.fault_figures import Figure
    from realmem.bench.fault_ours import FaultPlan


def floors(plan: FaultPlan) -> Iterator[tuple[Figure, float]]:
    """
    Take the floor of each kind of fault once.

    :param plan: what our faults did with it says which host calls to make.
    """
    from realmem._bench.fault_floor import floor

    n, order, pages = plan.n, plan.order, plan.pages
    taken: dict[tuple[str, int, bool, bool, bool], float] = {}

    def of(
        how: str, order: int, copies: bool = False, zeroes: bool = False, same: bool = False
    ) -> float:
        key = (how, order, copies, zeroes, same)
        if key not in taken:
            taken[key] = floor(n, how, order, pages, copies, zeroes, same)
        return taken[key]

    by_uffd = plan.faults == "userfaultfd"
    for how in ("mmap", "continue") if by_uffd else ("mmap", "mprotect"):
        yield plan.figure(f"signal+{how}", "floor"), of(how, order)
    for metric, (call, brought) in plan.calls.items():
        if metric == "anonymous write":
            # Of a run that the faults map, too.
            call = {"mprotect": "run", "continue": "run continue"}.get(call, call)
            yield plan.figure(metric, "floor+zero"), of(call, brought, zeroes=True)
        elif metric.startswith("cow") and call == "mprotect":
            # Opened where it lies, in what a fork protected.
            call = "unprotect" if by_uffd else "reprotect"
        same = metric == "zero page read" and brought == 0
        ns = of(call, brought, copies=metric.startswith("cow copy"), same=same)
        yield plan.figure(metric, "floor"), ns
