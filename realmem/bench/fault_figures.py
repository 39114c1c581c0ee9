"""What a figure of the fault bench is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from realmem.bench.results import Param


@dataclass(frozen=True, order=True)
class Figure:
    """
    One row of the table.

    :ivar metric: the kind of fault.
    :ivar order: of what a fault may bring.
    :ivar pattern: how the pages are touched.
    :ivar threads: how many at once.
    :ivar who: ``"realmem"``, ``"kernel"``, ``"floor"`` or ``"native"``.
    :ivar faults: how a machine fills; of the kernel and of plain loads, ``"-"``.
    """

    metric: str
    order: int
    pattern: str
    threads: int
    who: str
    faults: str = "sigsegv"

    def __post_init__(self) -> None:
        """Have what no machine did be of no backend."""
        if self.who in ("kernel", "native"):
            object.__setattr__(self, "faults", "-")

    def of(self, who: str) -> Figure:
        """Give the same figure of somebody else."""
        return replace(self, who=who)

    def by_one(self) -> Figure:
        """Give the same figure of one thread."""
        return replace(self, threads=1)

    def at_order(self, order: int) -> Figure:
        """Give the same figure at another order."""
        return replace(self, order=order)

    @property
    def params(self) -> dict[str, Param]:
        """What was fixed."""
        return {
            "order": self.order,
            "pattern": self.pattern,
            "threads": self.threads,
            "faults": self.faults,
        }


# Takes some figures once: ns each.
Step = Callable[[], Iterator[tuple[Figure, float]]]
