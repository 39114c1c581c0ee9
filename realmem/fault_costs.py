"""What page faults cost, down to their parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from realmem.arguments import as_str

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from realmem._core.mmu import Mmu

PARTS = ("signal", "vma", "walk", "alloc", "zero_or_copy", "host_map", "total")
WAYS = (None, "raw", "software")


class FaultKey(NamedTuple):
    """
    What a group of faults has in common.

    :ivar kind: what they came to: ``"zero_page"`` (a read of untouched memory), ``"anon"`` (a
        zeroed frame or folio), ``"cow"`` (a copy), ``"reuse"`` (the last owner's frame, opened
        for writing), ``"shared"`` (a frame of shared memory), ``"refill"`` (the page table
        allowed it: the host had lost the mapping, or an accessed or dirty bit was due).
    :ivar order: of the folio that was mapped, 0 for a single page; 9 for the huge zero page.
    :ivar cpu_node: node of the CPU that it happened on, or of ``p.run_on()``.
    :ivar memory_node: node of the frame.
    """

    kind: str
    order: int
    cpu_node: int
    memory_node: int


class Histogram:
    """
    How long something took, as often as it was timed; right to 12 %.

    :param values: nanoseconds, shape (n,), ascending.
    :param counts: how often each, shape (n,).
    :ivar count: how often in all.
    """

    def __init__(self, values: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
        self._values = values
        self._sums = counts.cumsum()
        self.count = round(float(self._sums[-1])) if len(counts) else 0

    def percentile(self, q: float) -> float:
        """
        Give the time that ``q`` percent of them did not exceed, in nanoseconds.

        :param q: 0 to 100.
        :raises ValueError: it is not within them.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"a percentile is within 0 and 100, not {q!r}")
        if not self.count:
            return float("nan")
        import numpy as np

        # Every value stands for at least one fault: the first one is the least.
        at = int(np.searchsorted(self._sums, self._sums[-1] * q / 100 * (1 - 1e-12)))
        return float(self._values[at])

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}, median {self.percentile(50):.0f} ns>"


@dataclass(frozen=True)
class FaultCost:
    """
    What the faults of one group cost.

    :ivar count: how many there were.
    :ivar signal: SIGSEGV out and back, of raw faults; of others 0.  A handler cannot see when its
        signal set out, so that bare signals are timed when the costs are asked for.
    :ivar vma: finding window and VMA, waiting for the address space's lock.
    :ivar walk: down the page tables, making those that are missing.
    :ivar alloc: a frame.
    :ivar zero_or_copy: filling it.
    :ivar host_map: setting the entry, and the host's mapping.
    :ivar total: all of it, the signal included.
    """

    count: int
    signal: Histogram
    vma: Histogram
    walk: Histogram
    alloc: Histogram
    zero_or_copy: Histogram
    host_map: Histogram
    total: Histogram


class FaultCosts(dict[FaultKey, FaultCost]):
    """Fault costs by (kind, order, cpu_node, memory_node); prints as a table."""

    def __str__(self) -> str:
        head = f"{'kind':<10} order  cpu>mem    count" + "".join(f"{p:>13}" for p in PARTS)
        lines = [f"median (99th percentile), ns\n{head}"]
        for key, cost in sorted(self.items()):
            cells = (getattr(cost, part) for part in PARTS)
            figures = (f"{h.percentile(50):.0f} ({h.percentile(99):.0f})" for h in cells)
            lines.append(
                f"{key.kind:<10} {key.order:>5} {key.cpu_node:>4}>{key.memory_node:<3}"
                f" {cost.count:>8}" + "".join(f"{figure:>13}" for figure in figures)
            )
        return "\n".join(lines)


def fault_costs(mmu: Mmu | None, way: str | None) -> FaultCosts:
    """
    Read what the kernel side noted.

    :param mmu: the machine's, None if nothing was mapped yet.
    :param way: ``"raw"``, ``"software"`` or None for both.
    """
    if way is not None and as_str(way, "way") not in WAYS:
        raise ValueError(f"way must be 'raw', 'software' or None, not {way!r}")
    if mmu is None:
        return FaultCosts()
    from realmem._core import fault_costs as core

    noted: dict[FaultKey, list[tuple[bool, int, bytes]]] = {}
    for raw, kind, order, cpu_node, memory_node, count, buckets in core.read(mmu):
        if way is None or raw == (way == "raw"):
            key = FaultKey(kind, order, cpu_node, memory_node)
            noted.setdefault(key, []).append((raw, count, buckets))
    if not noted:
        return FaultCosts()
    scale = _Scale(core, mmu, any(raw for ways in noted.values() for raw, *_ in ways))
    return FaultCosts({key: scale.cost(ways) for key, ways in noted.items()})


class _Scale:
    """Turns buckets of cycles into nanoseconds."""

    def __init__(self, core: Any, mmu: Mmu, raw: bool) -> None:
        import numpy as np

        ns = core.ns_per_cycle(mmu)
        bounds = np.array(core.bucket_bounds(), dtype=np.float64) * ns
        self._middles = (bounds[:-1] + bounds[1:]) / 2
        self._middles[0] = 0.0      # what was not needed took no time
        self._signals = np.sort(np.array(core.probe() if raw else [], dtype=np.float64)) * ns

    def cost(self, ways: Sequence[tuple[bool, int, bytes]]) -> FaultCost:
        import numpy as np

        bare = float(np.median(self._signals)) if len(self._signals) else 0.0
        parts: dict[str, list[tuple[Any, Any]]] = {part: [] for part in PARTS}
        for raw, count, buckets in ways:
            table = np.frombuffer(buckets, dtype=np.uint32).reshape(len(PARTS) - 1, -1)
            for part, counts in zip(PARTS[1:], table, strict=True):
                shift = bare if raw and part == "total" else 0.0
                parts[part].append((self._middles + shift, counts))
            if raw:             # no samples: the host refused the page to take them with
                share = np.full(len(self._signals), count / max(len(self._signals), 1))
                parts["signal"].append((self._signals, share))
            else:
                parts["signal"].append((np.zeros(1), np.array([count])))
        histograms = {part: _merge(pieces) for part, pieces in parts.items()}
        return FaultCost(sum(count for _, count, _ in ways), **histograms)


def _merge(pieces: Iterable[tuple[Any, Any]]) -> Histogram:
    import numpy as np

    values, counts = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    used = np.flatnonzero(counts)
    order = used[np.argsort(values[used], kind="stable")]
    return Histogram(values[order], counts[order].astype(np.float64))
