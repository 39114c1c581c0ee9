"""
The VMAs of an address space: an immutable, persistent ordered set.

A change makes a new tree that shares all but one path with the old one, so that it can be planned
aside and published by storing one reference; fork shares the tree as it is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from realmem.layout import PAGE_SIZE
from realmem.mm.btree import Node, collect, cut, highest_in, lowest_in, splice, walk
from realmem.mm.vma import VM_GROWSDOWN, Vma

# mm/mmap.c:stack_guard_gap, as booted: what searches keep free below a stack.
STACK_GUARD_GAP = 256 * PAGE_SIZE


class VmaTree:
    """
    An immutable set of VMAs that do not overlap, ordered by address.

    ``brk``, ``def_flags`` and ``seen`` are what is published in the same step as the VMAs.

    :ivar root: the topmost node, or None.
    :ivar brk: the program break (mm_struct.brk).
    :ivar def_flags: VM_* bits that new mappings get (mm_struct.def_flags).
    :ivar seen: every VM_* bit that any VMA has, and perhaps bits that one had.
    """

    __slots__ = ("brk", "def_flags", "root", "seen")

    def __init__(
        self, root: Node | None = None, brk: int = 0, def_flags: int = 0, seen: int = 0
    ) -> None:
        self.root = root
        self.brk = brk
        self.def_flags = def_flags
        self.seen = seen

    @classmethod
    def of(cls, vmas: Iterable[Vma], brk: int = 0, def_flags: int = 0) -> VmaTree:
        """Make a tree of VMAs that are in order."""
        return cls(None, brk, def_flags).replace(0, 0, tuple(vmas))

    # ---- looking ----

    def __len__(self) -> int:
        return 0 if self.root is None else self.root.count

    def __iter__(self) -> Iterator[Vma]:
        return iter(()) if self.root is None else walk(self.root)

    def find(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr``, or the next one above (mm/mmap.c:find_vma())."""
        node = self.root
        if node is None or node.ends[-1] <= addr:
            return None
        while True:
            i = bisect_right(node.ends, addr)
            if node.leaf:
                vma: Vma = node.items[i]
                return vma
            node = node.items[i]

    def prev(self, addr: int) -> Vma | None:
        """Give the last VMA that starts below ``addr``."""
        node = self.root
        if node is None or node.starts[0] >= addr:
            return None
        while True:
            i = bisect_left(node.starts, addr) - 1
            if node.leaf:
                vma: Vma = node.items[i]
                return vma
            node = node.items[i]

    def at(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr``, or None (mm/mmap.c:vma_lookup())."""
        vma = self.find(addr)
        return vma if vma is not None and vma.start <= addr else None

    def range(self, lo: int, hi: int) -> list[Vma]:
        """List the VMAs that start within ``[lo, hi)``."""
        out: list[Vma] = []
        if self.root is not None and lo < hi:
            collect(self.root, lo, hi, out)
        return out

    def span(self, start: int, end: int) -> list[Vma]:
        """List the VMAs that hold any address of ``[start, end)``."""
        first = self.find(start)
        if first is None or first.start >= end or start >= end:
            return []
        if first.end >= end:
            return [first]
        return [first, *self.range(first.end, end)]

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a VMA holds any address of ``[start, end)``."""
        vma = self.find(start)
        return vma is not None and vma.start < end

    # ---- room ----

    def gap_below(
        self, length: int, low: int, high: int, guard: int = STACK_GUARD_GAP
    ) -> int | None:
        """
        Find room for ``length`` bytes in ``[low, high)``, as high as possible.

        Compare mm/vma.c:unmapped_area_topdown().

        :param guard: bytes that stay free below a VM_GROWSDOWN VMA.
        """
        while True:
            top = self._highest(length, low, high)
            if top is None:
                return None
            above = self.find(top)
            if above is None or not above.vm_flags_word & VM_GROWSDOWN:
                return top - length
            edge = max(above.start - guard, 0)
            if edge >= top:
                return top - length
            high = edge

    def gap_above(
        self, length: int, low: int, high: int, guard: int = STACK_GUARD_GAP
    ) -> int | None:
        """
        Find room for ``length`` bytes in ``[low, high)``, as low as possible.

        Compare mm/vma.c:unmapped_area().
        """
        while True:
            start = self._lowest(length, low, high)
            if start is None:
                return None
            above = self.find(start)
            if above is None or not above.vm_flags_word & VM_GROWSDOWN:
                return start
            if max(above.start - guard, 0) >= start + length - 1:
                return start
            low = above.end

    def _highest(self, length: int, low: int, high: int) -> int | None:
        """Give the end of the highest gap that is wide enough, ends cut off at the limits."""
        if high - low < length:
            return None
        root = self.root
        if root is None:
            return high
        if high - max(root.ends[-1], low) >= length:
            return high
        if root.gap >= length:
            top = highest_in(root, length, low, high)
            if top is not None:
                return top
        top = min(root.starts[0], high)
        return top if top - low >= length else None

    def _lowest(self, length: int, low: int, high: int) -> int | None:
        """Give the start of the lowest gap that is wide enough, ends cut off at the limits."""
        if high - low < length:
            return None
        root = self.root
        if root is None or min(root.starts[0], high) - low >= length:
            return low
        if root.gap >= length:
            bottom = lowest_in(root, length, low, high)
            if bottom is not None:
                return bottom
        bottom = max(root.ends[-1], low)
        return bottom if high - bottom >= length else None

    # ---- changing ----

    def replace(self, lo: int, hi: int, vmas: Sequence[Vma]) -> VmaTree:
        """
        Make a tree in which ``vmas`` stand for those that start within ``[lo, hi)``.

        The new ones are in order and fit between the neighbours; their starts need not lie within
        the range.
        """
        seen = self.seen
        for vma in vmas:
            seen |= vma.vm_flags_word
        if self.root is None:
            nodes = cut(list(vmas), True)
        else:
            nodes = splice(self.root, lo, hi, tuple(vmas))
        while len(nodes) > 1:
            nodes = cut(nodes, False)
        root = nodes[0] if nodes else None
        while root is not None and not root.leaf and len(root.items) == 1:
            root = root.items[0]
        return VmaTree(root, self.brk, self.def_flags, seen)

    def with_brk(self, brk: int) -> VmaTree:
        """Make a tree with another program break."""
        return VmaTree(self.root, brk, self.def_flags, self.seen)

    def with_def_flags(self, def_flags: int) -> VmaTree:
        """Make a tree with other flags for new mappings."""
        return VmaTree(self.root, self.brk, def_flags, self.seen)
