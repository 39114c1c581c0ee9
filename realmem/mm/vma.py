"""
VMAs: what was promised to a process.  Testable without memory.

A change is planned aside and applied in one step, by the kernel side's splice where there is one
(realmem/mm/address_space.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

# include/linux/mm.h; the may-bits are what mprotect could give.
VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_MAYREAD = 0x10
VM_MAYWRITE = 0x20
VM_MAYEXEC = 0x40
VM_MAYSHARE = 0x80
VM_ACCOUNT = 0x100000
VM_NORESERVE = 0x200000

# fs/proc/task_mmu.c:show_smap_vma_flags()
_FLAG_NAMES = {
    VM_READ: "rd",
    VM_WRITE: "wr",
    VM_EXEC: "ex",
    VM_SHARED: "sh",
    VM_MAYREAD: "mr",
    VM_MAYWRITE: "mw",
    VM_MAYEXEC: "me",
    VM_MAYSHARE: "ms",
    VM_ACCOUNT: "ac",
    VM_NORESERVE: "nr",
}
_PROT_MASK = PROT_READ | PROT_WRITE | PROT_EXEC


def vm_flags_of(prot: int, *, noreserve: bool = False) -> int:
    """Give the vm_flags of a private anonymous mapping (mm/mmap.c:do_mmap())."""
    flags = (prot & _PROT_MASK) | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    if noreserve:
        flags |= VM_NORESERVE
    elif prot & PROT_WRITE:
        flags |= VM_ACCOUNT
    return flags


@dataclass(frozen=True, slots=True)
class Vma:
    """
    One range of addresses with one set of rights.

    :ivar start: first address.
    :ivar end: one past the last.
    :ivar vm_flags_word: VM_* bits.
    :ivar offset: bytes into the file; 0 for anonymous memory.
    :ivar file: the path of the file, or None.
    :ivar policy: memory policy of its own, or None.
    :ivar name: set by prctl, or None.
    """

    start: int
    end: int
    vm_flags_word: int
    offset: int = 0
    file: str | None = None
    policy: None = None
    name: str | None = None

    @property
    def prot(self) -> int:
        """PROT_* bits."""
        return self.vm_flags_word & _PROT_MASK

    @property
    def flags(self) -> int:
        """MAP_* bits."""
        kind = MAP_SHARED if self.vm_flags_word & VM_SHARED else MAP_PRIVATE
        return kind | (MAP_ANONYMOUS if self.anon else 0)

    @property
    def vm_flags(self) -> frozenset[str]:
        """Linux's two-letter names, as in smaps."""
        return frozenset(
            name for bit, name in _FLAG_NAMES.items() if self.vm_flags_word & bit
        )

    @property
    def anon(self) -> bool:
        """Whether no file is behind it."""
        return self.file is None

    @property
    def locked(self) -> bool:
        """Whether it is locked in memory."""
        return False


@dataclass(frozen=True, slots=True)
class Change:
    """
    A planned change: slots ``[at, at + removed)`` become ``added``.

    :ivar start: with ``end``, the range whose pages go; empty if none do.
    """

    at: int
    removed: int
    added: list[Vma]
    start: int = 0
    end: int = 0


def _mergeable(left: Vma, right: Vma) -> bool:
    return (
        left.end == right.start
        and left.vm_flags_word == right.vm_flags_word
        and left.file == right.file
        and left.policy == right.policy
        and left.name == right.name
        and left.file is None
    )


class VmaSet:
    """
    The VMAs of one process, sorted.

    :ivar starts: start addresses; changed together with ``vmas``.
    :ivar vmas: the VMAs; replace, never edit.
    """

    def __init__(self, vmas: Sequence[Vma] = ()) -> None:
        self.vmas = list(vmas)
        self.starts = [vma.start for vma in self.vmas]

    def __len__(self) -> int:
        return len(self.vmas)

    def __iter__(self) -> Iterator[Vma]:
        return iter(self.vmas)

    def find(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr`` or the next one above (mm/mmap.c:find_vma())."""
        at = self._at(addr)
        return self.vmas[at] if at < len(self.vmas) else None

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a VMA holds any address of ``[start, end)``."""
        vma = self.find(start)
        return vma is not None and vma.start < end

    def gap_below(self, length: int, low: int, high: int) -> int | None:
        """
        Find room for ``length`` bytes in ``[low, high)``, as high as possible.

        Compare mm/vma.c:unmapped_area_topdown().
        """
        top = high
        for i in range(bisect_left(self.starts, high) - 1, -1, -1):
            vma = self.vmas[i]
            if vma.end < top and top - max(vma.end, low) >= length:
                return top - length
            top = min(top, vma.start)
            if top < low + length:
                return None
        return top - length if top - length >= low else None

    def plan_unmap(self, start: int, end: int) -> Change:
        """Plan to take ``[start, end)`` away; VMAs across its ends are split."""
        first, last = self._span(start, end)
        added = []
        if first < last:
            left, right = self.vmas[first], self.vmas[last - 1]
            if left.start < start:
                added.append(_cut(left, left.start, start))
            if right.end > end:
                added.append(_cut(right, end, right.end))
        return Change(first, last - first, added, start, end)

    def plan_map(self, new: Vma) -> Change:
        """Plan to put ``new`` in, over whatever is there; it merges with like neighbours."""
        first, last = self._span(new.start, new.end)
        start, end = new.start, new.end
        zap = (start, end) if first < last else (0, 0)
        added: list[Vma] = []
        before = None
        if first < last and self.vmas[first].start < start:
            before = _cut(self.vmas[first], self.vmas[first].start, start)
        elif first > 0 and _mergeable(self.vmas[first - 1], new):
            first -= 1
            before = self.vmas[first]
        after = None
        if first < last and self.vmas[last - 1].end > end:
            after = _cut(self.vmas[last - 1], end, self.vmas[last - 1].end)
        elif last < len(self.vmas) and _mergeable(new, self.vmas[last]):
            after = self.vmas[last]
            last += 1
        for vma in (before, new, after):
            if vma is None:
                continue
            if added and _mergeable(added[-1], vma):
                added[-1] = _cut(added[-1], added[-1].start, vma.end)
            else:
                added.append(vma)
        return Change(first, last - first, added, *zap)

    def apply(self, change: Change) -> None:
        """Make a planned change."""
        span = slice(change.at, change.at + change.removed)
        self.vmas[span] = change.added
        self.starts[span] = [vma.start for vma in change.added]

    def _at(self, addr: int) -> int:
        at = bisect_right(self.starts, addr) - 1
        return at if at >= 0 and self.vmas[at].end > addr else at + 1

    def _span(self, start: int, end: int) -> tuple[int, int]:
        first = self._at(start)
        return first, max(first, bisect_left(self.starts, end))


def _cut(vma: Vma, start: int, end: int) -> Vma:
    offset = vma.offset + start - vma.start if vma.file is not None else 0
    return Vma(start, end, vma.vm_flags_word, offset, vma.file, vma.policy, vma.name)


def page_align(length: int) -> int:
    """Round up to whole pages."""
    return (length + PAGE_SIZE - 1) & -PAGE_SIZE
