"""
The nodes under a VmaTree: a B-tree that is never changed in place.

Each node knows the largest gap between the VMAs below it, so that room is found in O(log n)
(compare lib/maple_tree.c:mas_empty_area_rev()).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import sub
from typing import Any

from realmem.mm.vma import Vma

FAN_OUT = 32
FAN_LOW = FAN_OUT // 4


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
    items: tuple[Any, ...]
    leaf: bool
    count: int
    gap: int

    def __init__(
        self,
        items: Sequence[Any],
        leaf: bool,
        starts: tuple[int, ...] | None = None,
        ends: tuple[int, ...] = (),
    ) -> None:
        self.items = tuple(items)
        self.leaf = leaf
        gap = 0
        if starts is not None:              # of a leaf, where the caller has them anyway
            self.starts, self.ends = starts, ends
            self.count = len(items)
        elif leaf:
            self.starts = tuple([vma.start for vma in items])
            self.ends = tuple([vma.end for vma in items])
            self.count = len(items)
        else:
            self.starts = tuple([node.starts[0] for node in items])
            self.ends = tuple([node.ends[-1] for node in items])
            self.count = sum([node.count for node in items])
            gap = max([node.gap for node in items])
        if len(items) > 1:
            gap = max(gap, max(map(sub, self.starts[1:], self.ends)))
        self.gap = gap


def walk(node: Node) -> Iterator[Vma]:
    """Give the VMAs below a node, in order."""
    if node.leaf:
        yield from node.items
    else:
        for item in node.items:
            yield from walk(item)


def collect(node: Node, lo: int, hi: int, out: list[Vma]) -> None:
    """Append the VMAs below a node that start within ``[lo, hi)``."""
    last = bisect_left(node.starts, hi)
    if node.leaf:
        out.extend(node.items[bisect_left(node.starts, lo) : last])
        return
    for item in node.items[max(bisect_right(node.starts, lo) - 1, 0) : last]:
        collect(item, lo, hi, out)


def highest_in(node: Node, length: int, low: int, high: int) -> int | None:
    """Give the end of the highest gap of ``length`` between VMAs below a node, within limits."""
    starts, ends, items = node.starts, node.ends, node.items
    i = bisect_left(starts, high) - 1       # what starts higher leaves no room below the limit
    if 0 <= i < len(starts) - 1 and high - max(ends[i], low) >= length:
        return high                         # the limit cuts this gap
    while i >= 0:
        if not node.leaf and items[i].gap >= length:
            top = highest_in(items[i], length, low, high)
            if top is not None:
                return top
        if starts[i] <= low or i == 0:
            return None
        if starts[i] - max(ends[i - 1], low) >= length:
            return starts[i]
        i -= 1
    return None


def lowest_in(node: Node, length: int, low: int, high: int) -> int | None:
    """Give the start of the lowest gap of ``length`` between VMAs below a node, within limits."""
    starts, ends, items = node.starts, node.ends, node.items
    last = len(starts) - 1
    i = bisect_right(ends, low)             # what ends lower leaves no room above the limit
    if 0 < i <= last and min(starts[i], high) - low >= length:
        return low
    while i <= last:
        if not node.leaf and items[i].gap >= length:
            bottom = lowest_in(items[i], length, low, high)
            if bottom is not None:
                return bottom
        if ends[i] >= high or i == last:
            return None
        if min(starts[i + 1], high) - ends[i] >= length:
            return ends[i]
        i += 1
    return None


def cut(items: Sequence[Any], leaf: bool) -> list[Node]:
    """Make nodes of about equal size, as few as hold the items."""
    total = len(items)
    parts = -(-total // FAN_OUT)
    return [
        Node(items[total * i // parts : total * (i + 1) // parts], leaf) for i in range(parts)
    ]


def _with_item(node: Node, i: int, item: Node) -> Node:
    """Give a node above the leaves with one item replaced; looks at the others if it must."""
    old: Node = node.items[i]
    starts, ends, gap = node.starts, node.ends, max(node.gap, item.gap)
    items = (*node.items[:i], item, *node.items[i + 1 :])
    start, end = item.starts[0], item.ends[-1]
    moved = starts[i] != start or ends[i] != end
    if moved:
        starts = (*starts[:i], start, *starts[i + 1 :])
        ends = (*ends[:i], end, *ends[i + 1 :])
    if moved or old.gap == node.gap > item.gap:
        gap = max(max([below.gap for below in items]), max(map(sub, starts[1:], ends), default=0))
    new = Node.__new__(Node)
    new.items, new.leaf, new.starts, new.ends, new.gap = items, False, starts, ends, gap
    new.count = node.count - old.count + item.count
    return new


def splice(node: Node, lo: int, hi: int, vmas: tuple[Vma, ...]) -> list[Node]:
    """Give the nodes, of the same height, that stand for ``node`` after a replacement."""
    starts, items = node.starts, node.items
    if node.leaf:
        first = bisect_left(starts, lo)
        last = max(bisect_left(starts, hi), first)
        kept = items[:first] + vmas + items[last:]
        if not 0 < len(kept) <= FAN_OUT:
            return cut(kept, True)
        return [
            Node(
                kept,
                True,
                starts[:first] + tuple([vma.start for vma in vmas]) + starts[last:],
                node.ends[:first] + tuple([vma.end for vma in vmas]) + node.ends[last:],
            )
        ]
    first = max(bisect_right(starts, lo) - 1, 0)
    last = max(bisect_left(starts, hi) - 1, first)
    changed = splice(items[first], lo, hi, vmas)
    if last > first:
        changed += splice(items[last], lo, hi, ())
    elif len(changed) == 1 and len(changed[0].items) >= FAN_LOW:
        return [_with_item(node, first, changed[0])]
    left, right = first, last + 1
    if changed and min([len(new.items) for new in changed]) < FAN_LOW:
        # Too little in one: share with a neighbour.
        if left > 0:
            left -= 1
            changed.insert(0, items[left])
        elif right < len(items):
            changed.append(items[right])
            right += 1
        if len(changed) > 1:
            below = [item for new in changed for item in new.items]
            changed = cut(below, changed[0].leaf)
    nodes = items[:left] + tuple(changed) + items[right:]
    return [Node(nodes, False)] if 0 < len(nodes) <= FAN_OUT else cut(nodes, False)
