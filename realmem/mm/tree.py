"""
The VMAs of an address space: an immutable, persistent ordered set.

A change makes a new tree that shares all but one path with the old one, so that it can be planned
aside and published by storing one reference; fork shares the tree as it is.  Each node knows the
largest gap between the VMAs below it, so that room is found in O(log n) (compare
lib/maple_tree.c:mas_empty_area_rev()).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import sub

from realmem.layout import PAGE_SIZE
from realmem.mm.vma import VM_GROWSDOWN, Vma

FAN_OUT = 32
FAN_LOW = FAN_OUT // 4
# mm/mmap.c:stack_guard_gap, as booted: what searches keep free below a stack.
STACK_GUARD_GAP = 256 * PAGE_SIZE


class Node:
    """
    A node; never changed once made.

    :ivar starts: the first address of each item.
    :ivar ends: one past the last address of each item.
    :ivar items: VMAs in a leaf, nodes above.
    :ivar leaf: whether the items are VMAs.
    :ivar count: VMAs below.
    :ivar gap: the largest gap between two VMAs below, in bytes.
    """

    __slots__ = ("count", "ends", "gap", "items", "leaf", "starts")

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    items: tuple[Vma, ...] | tuple[Node, ...]

    def __init__(self, items: Sequence[Vma] | Sequence[Node], leaf: bool) -> None:
        self.items = tuple(items)  # type: ignore[assignment]
        self.leaf = leaf
        gap = 0
        if leaf:
            self.starts = tuple([vma.start for vma in items])  # type: ignore[union-attr]
            self.ends = tuple([vma.end for vma in items])  # type: ignore[union-attr]
            self.count = len(items)
        else:
            self.starts = tuple([node.starts[0] for node in items])  # type: ignore[union-attr]
            self.ends = tuple([node.ends[-1] for node in items])  # type: ignore[union-attr]
            self.count = sum([node.count for node in items])  # type: ignore[union-attr]
            gap = max([node.gap for node in items])  # type: ignore[union-attr]
        if len(items) > 1:
            gap = max(gap, max(map(sub, self.starts[1:], self.ends)))
        self.gap = gap


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
        return iter(()) if self.root is None else _walk(self.root)

    def find(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr``, or the next one above (mm/mmap.c:find_vma())."""
        node = self.root
        if node is None or node.ends[-1] <= addr:
            return None
        while True:
            i = bisect_right(node.ends, addr)
            item = node.items[i]
            if node.leaf:
                return item  # type: ignore[return-value]
            node = item  # type: ignore[assignment]

    def prev(self, addr: int) -> Vma | None:
        """Give the last VMA that starts below ``addr``."""
        node = self.root
        if node is None or node.starts[0] >= addr:
            return None
        while True:
            item = node.items[bisect_left(node.starts, addr) - 1]
            if node.leaf:
                return item  # type: ignore[return-value]
            node = item  # type: ignore[assignment]

    def at(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr``, or None (mm/mmap.c:vma_lookup())."""
        vma = self.find(addr)
        return vma if vma is not None and vma.start <= addr else None

    def range(self, lo: int, hi: int) -> list[Vma]:
        """List the VMAs that start within ``[lo, hi)``."""
        out: list[Vma] = []
        if self.root is not None and lo < hi:
            _collect(self.root, lo, hi, out)
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
            top = _highest_in(root, length, low, high)
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
            bottom = _lowest_in(root, length, low, high)
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
            nodes = _cut(list(vmas), True)
        else:
            nodes = _splice(self.root, lo, hi, tuple(vmas))
        while len(nodes) > 1:
            nodes = _cut(nodes, False)
        root = nodes[0] if nodes else None
        while root is not None and not root.leaf and len(root.items) == 1:
            root = root.items[0]  # type: ignore[assignment]
        return VmaTree(root, self.brk, self.def_flags, seen)

    def with_brk(self, brk: int) -> VmaTree:
        """Make a tree with another program break."""
        return VmaTree(self.root, brk, self.def_flags, self.seen)

    def with_def_flags(self, def_flags: int) -> VmaTree:
        """Make a tree with other flags for new mappings."""
        return VmaTree(self.root, self.brk, def_flags, self.seen)


def _walk(node: Node) -> Iterator[Vma]:
    if node.leaf:
        yield from node.items  # type: ignore[misc]
    else:
        for item in node.items:
            yield from _walk(item)  # type: ignore[arg-type]


def _collect(node: Node, lo: int, hi: int, out: list[Vma]) -> None:
    last = bisect_left(node.starts, hi)
    if node.leaf:
        out.extend(node.items[bisect_left(node.starts, lo) : last])  # type: ignore[arg-type]
        return
    for item in node.items[max(bisect_right(node.starts, lo) - 1, 0) : last]:
        _collect(item, lo, hi, out)  # type: ignore[arg-type]


def _highest_in(node: Node, length: int, low: int, high: int) -> int | None:
    starts, ends, items = node.starts, node.ends, node.items
    i = bisect_left(starts, high) - 1       # what starts higher leaves no room below the limit
    if 0 <= i < len(starts) - 1 and high - max(ends[i], low) >= length:
        return high                         # the limit cuts this gap
    while i >= 0:
        if not node.leaf and items[i].gap >= length:  # type: ignore[union-attr]
            top = _highest_in(items[i], length, low, high)  # type: ignore[arg-type]
            if top is not None:
                return top
        if starts[i] <= low or i == 0:
            return None
        if starts[i] - max(ends[i - 1], low) >= length:
            return starts[i]
        i -= 1
    return None


def _lowest_in(node: Node, length: int, low: int, high: int) -> int | None:
    starts, ends, items = node.starts, node.ends, node.items
    last = len(starts) - 1
    i = bisect_right(ends, low)             # what ends lower leaves no room above the limit
    if 0 < i <= last and min(starts[i], high) - low >= length:
        return low
    while i <= last:
        if not node.leaf and items[i].gap >= length:  # type: ignore[union-attr]
            bottom = _lowest_in(items[i], length, low, high)  # type: ignore[arg-type]
            if bottom is not None:
                return bottom
        if ends[i] >= high or i == last:
            return None
        if min(starts[i + 1], high) - ends[i] >= length:
            return ends[i]
        i += 1
    return None


def _cut(items: Sequence[Vma] | Sequence[Node], leaf: bool) -> list[Node]:
    """Make nodes of about equal size, as few as hold the items."""
    total = len(items)
    parts = -(-total // FAN_OUT)
    return [
        Node(items[total * i // parts : total * (i + 1) // parts], leaf) for i in range(parts)
    ]


def _splice(node: Node, lo: int, hi: int, vmas: tuple[Vma, ...]) -> list[Node]:
    """Give the nodes, of the same height, that stand for ``node`` after a replacement."""
    starts, items = node.starts, node.items
    if node.leaf:
        first = bisect_left(starts, lo)
        last = max(bisect_left(starts, hi), first)
        kept = items[:first] + vmas + items[last:]  # type: ignore[operator]
        return [Node(kept, True)] if 0 < len(kept) <= FAN_OUT else _cut(kept, True)
    first = max(bisect_right(starts, lo) - 1, 0)
    last = max(bisect_left(starts, hi) - 1, first)
    changed = _splice(items[first], lo, hi, vmas)  # type: ignore[arg-type]
    if last > first:
        changed += _splice(items[last], lo, hi, ())  # type: ignore[arg-type]
    left, right = first, last + 1
    if changed and min([len(new.items) for new in changed]) < FAN_LOW:
        # Too little in one: share with a neighbour.
        if left > 0:
            left -= 1
            changed.insert(0, items[left])  # type: ignore[arg-type]
        elif right < len(items):
            changed.append(items[right])  # type: ignore[arg-type]
            right += 1
        if len(changed) > 1:
            below = [item for new in changed for item in new.items]
            changed = _cut(below, changed[0].leaf)  # type: ignore[arg-type]
    nodes = items[:left] + tuple(changed) + items[right:]  # type: ignore[operator]
    return [Node(nodes, False)] if 0 < len(nodes) <= FAN_OUT else _cut(nodes, False)
