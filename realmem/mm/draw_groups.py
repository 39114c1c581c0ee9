"""Which VMAs of many are drawn together, so that a picture stays readable."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Block:
    """
    One VMA, or several drawn as one.

    :ivar start: first address.
    :ivar end: one past the last.
    :ivar perms: as in maps; of several, those that they all share.
    :ivar label: its name; empty if it has none.
    :ivar mapped: bytes that are mapped; less than its length where there are holes inside.
    :ivar vmas: how many it stands for.
    """

    start: int
    end: int
    perms: str
    label: str = ""
    mapped: int = 0
    vmas: int = 1


def condense(blocks: Sequence[Block], most: int) -> list[Block]:
    """
    Draw together what lies closest, until at most ``most`` are left.

    The widest gaps part the groups; where there are too few gaps, the groups of the most VMAs
    are halved.
    """
    if len(blocks) <= most:
        return list(blocks)
    gaps = [(blocks[i].start - blocks[i - 1].end, i) for i in range(1, len(blocks))]
    widest = heapq.nlargest(most, (gap for gap in gaps if gap[0] > 0))
    # Of equal gaps none parts a group where not all of them could.
    least = widest[-1][0] if len(widest) == most else 0
    cuts = [0, *sorted(i for gap, i in widest if gap > least), len(blocks)]
    heap = [(a - b, a, b) for a, b in pairwise(cuts)]
    heapq.heapify(heap)
    while len(heap) < most:
        size, a, b = heap[0]
        if size == -1:
            break
        middle = (a + b) // 2
        heapq.heapreplace(heap, (a - middle, a, middle))
        heapq.heappush(heap, (middle - b, middle, b))
    return [_join(blocks[a:b]) for _, a, b in sorted(heap, key=lambda entry: entry[1])]


def _join(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    perms = "".join(
        letters[0] if all(letter == letters[0] for letter in letters) else "*"
        for letters in zip(*(block.perms for block in blocks), strict=True)
    )
    names = list(dict.fromkeys(block.label for block in blocks if block.label))
    count = f"{sum(block.vmas for block in blocks):,} VMAs"
    label = f"{count}, {names[0]}{' ...' if len(names) > 1 else ''}" if names else count
    return Block(
        blocks[0].start, blocks[-1].end, perms, label,
        sum(block.mapped for block in blocks), sum(block.vmas for block in blocks),
    )  # fmt: skip
