"""The running kernel's own faults and forks, on ordinary memory of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from realmem.bench.fault_figures import Figure
from realmem.bench.fault_ours import COW_BY_CHILD, FORK_PAGES
from realmem.thp import PMD_ORDER, size_name

if TYPE_CHECKING:
    from realmem.bench.fault_ours import FaultPlan

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")


def kernel_orders(settings: Path = SETTINGS) -> set[int]:
    """
    Tell at which orders the host's settings let memory that asks for it have folios.

    Of those below the PMD's, only such that nothing larger would be taken instead.
    """
    allowed = {
        order
        for order in range(2, PMD_ORDER + 1)
        if _of_order(settings, order) in ("always", "madvise")
    }
    return {0} | ({max(allowed)} if allowed else set())


def _of_order(settings: Path, order: int) -> str:
    # Before Linux 6.8 there was one switch, for the PMD's order.
    folder = settings / size_name(order)
    word = "inherit" if order == PMD_ORDER and not folder.exists() else _chosen(folder / "enabled")
    return _chosen(settings / "enabled") if word == "inherit" else word


def _chosen(path: Path) -> str:
    try:
        words = path.read_text().split()
    except OSError:
        return ""
    return next((word[1:-1] for word in words if word.startswith("[")), "")


def kernel_faults(plan: FaultPlan, huge: bool) -> Iterator[tuple[Figure, float]]:
    """
    Take each kind of fault once.

    :param huge: at the plan's order; else by single pages, as many as in the plan.
    """
    from realmem._bench.kernel_pages import KernelPages, Sharer

    def figure(metric: str) -> Figure:
        return plan.figure(metric, "kernel" if huge or plan.order == 0 else "kernel 4K")

    memory = KernelPages(plan.n, huge)
    yield figure("anonymous write"), memory.touch(True, plan.pages)
    sharer = Sharer()
    ns = memory.touch(True, plan.pages)
    sharer.close()
    yield figure("cow copy"), ns
    if plan.order == 0:
        yield figure(COW_BY_CHILD), ns
    Sharer().close()
    yield figure("cow reuse"), memory.touch(True, plan.pages)
    memory.close()
    memory = KernelPages(plan.n, huge)
    yield figure("zero page read"), memory.touch(False, plan.pages)
    memory.close()
    if plan.order == 0:
        memory = KernelPages(plan.n, shared=True)
        yield figure("shared write"), memory.touch(True, plan.pages)
        memory.close()
    if plan.pages is None:
        memory = KernelPages(plan.n, huge)
        yield figure("software first touch"), memory.touch(True)
        memory.close()


def kernel_fork() -> Iterator[tuple[Figure, float]]:
    """
    Fork this process with pages, and without.

    What else the process has takes longer than the pages: so in turn, and the least of several.
    """
    from realmem._bench.kernel_pages import KernelPages, Sharer

    memory = KernelPages(FORK_PAGES)

    def fork(present: bool) -> float:
        memory.inherit(present)
        memory.touch(True)  # writable again
        sharer = Sharer()
        sharer.close()
        return sharer.fork_ns

    samples = [(fork(True), fork(False)) for _ in range(5)]
    memory.close()
    present, empty = (min(column) for column in zip(*samples, strict=True))
    ns = (present - empty) / FORK_PAGES
    for metric in ("fork, mapped pages", "fork, tables only"):
        yield Figure(metric, 0, "in order", 1, "kernel"), ns
