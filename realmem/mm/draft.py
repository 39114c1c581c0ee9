"""
A change in the making: the working tree, the steps, and the accounts.

What a planner asks and says without changing where VMAs begin and end; see realmem.mm.plan.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NoReturn

from realmem.mm.merge import NO_ANON, Anon, shares_anon
from realmem.mm.tree import VmaTree
from realmem.mm.vma import (
    VM_GROWSDOWN,
    VM_MAYSHARE,
    Vma,
    is_data_mapping,
    is_exec_mapping,
)

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

Step = tuple[Any, ...]
TOTAL, DATA, EXEC, STACK, LOCKED = range(5)     # indices of counters and deltas


def fail(number: int, what: str = "") -> NoReturn:
    """Raise the OSError of an errno."""
    words = os.strerror(number)
    raise OSError(number, f"{words}: {what}" if what else words)


class Draft:
    """
    A change in the making.

    :param mm: the address space; its ``lock`` is held.
    :param charge_limit: the most pages that may be charged; a retry's, after commit refused more.
    :ivar tree: the VMAs as they will be.
    :ivar steps: what core.commit() is to do, in order.
    :ivar deltas: of total_vm, data_vm, exec_vm, stack_vm and locked_vm, in pages.
    :ivar charge: pages to add to vm_committed_as.
    :ivar generation: of the snapshot.
    :ivar populate: ranges to fault in once committed (mm_populate()); failures are ignored.
    """

    def __init__(self, mm: MemoryMap, charge_limit: int | None = None) -> None:
        self.mm = mm
        # The generation first: what changes after it makes the commit stale.
        self.generation: int = mm.core.generation
        self.before: VmaTree = mm.core.tree
        self.tree: VmaTree = self.before
        self.steps: list[Step] = []
        self.deltas = [0, 0, 0, 0, 0]
        self.charge = 0
        self.charge_limit = charge_limit
        self.populate: list[tuple[int, int]] = []
        # Where the anon_vma of a VMA of this plan comes from: a published VMA's start, -1 for
        # none, or less for one that the plan makes.
        self._origin: dict[int, int] = {}
        self._last_made = -1

    # ---- looking ----

    def find(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr`` or the next one above."""
        return self.tree.find(addr)

    def prev(self, addr: int) -> Vma | None:
        """Give the last VMA that starts below ``addr``."""
        return self.tree.prev(addr)

    def anon_vma(self, vma: Vma) -> Anon:
        """
        Give the identity of a VMA's anon_vma, 0 for none, and whether it came with a fork.

        :param vma: one of the working tree.
        """
        origin = self._origin.get(vma.start, vma.start)
        if origin < 0:
            return NO_ANON if origin == -1 else (origin, False)
        anon: Anon = self.mm.core.anon_vma(origin)
        return anon

    def counter(self, which: int) -> int:
        """Give a counter as the plan leaves it: TOTAL, DATA, EXEC, STACK or LOCKED, in pages."""
        return int(self.mm.core.counters[which]) + self.deltas[which]

    # ---- accounts ----

    def account(self, flags: int, pages: int) -> None:
        """Count pages of a mapping, or uncount them (mm/vma.c:vm_stat_account())."""
        self.deltas[TOTAL] += pages
        if is_exec_mapping(flags):
            self.deltas[EXEC] += pages
        elif flags & VM_GROWSDOWN:
            self.deltas[STACK] += pages
        elif is_data_mapping(flags):
            self.deltas[DATA] += pages

    def charge_pages(self, pages: int) -> None:
        """
        Charge pages to vm_committed_as, or with a negative number give them back.

        Commit checks a charge by the overcommit rules; where it refuses, the planner runs again
        and this raises.  Compare mm/util.c:__vm_enough_memory().

        :raises OSError: ENOMEM.
        """
        if pages > 0 and self.charge_limit is not None:
            if self.charge + pages > self.charge_limit:
                fail(errno.ENOMEM, "overcommit")
        self.charge += pages

    # ---- steps that leave VMAs as they are ----

    def zap(self, start: int, end: int) -> None:
        """Take the pages out of a range."""
        self.steps.append(("zap", start, end))

    def protect(self, start: int, end: int) -> None:
        """Have page-table entries follow the rights of the VMAs of now."""
        self.steps.append(("protect", start, end))

    def lock(self, start: int, end: int, on: bool) -> None:
        """Mark the pages that are present as locked, or not."""
        self.steps.append(("lock", start, end, on))

    def move(self, old: int, new: int, length: int) -> None:
        """Move page-table entries; the VMAs of both ranges exist."""
        self.steps.append(("move", old, new, length))

    def prepare_anon(self, vma: Vma) -> None:
        """
        Give a private VMA its anon_vma, as its first fault does: a neighbour's where that will do.

        Compare mm/vma.c:find_mergeable_anon_vma(), reusable_anon_vma().
        """
        if vma.vm_flags_word & VM_MAYSHARE or self.anon_vma(vma)[0]:
            return
        self.steps.append(("anon", vma.start, vma.end))
        for other in (self.find(vma.end), self.prev(vma.start)):
            if other is not None and shares_anon(other, vma, self.anon_vma(other)):
                self._origin[vma.start] = self._origin.get(other.start, other.start)
                return
        self._last_made -= 1
        self._origin[vma.start] = self._last_made

    def set_brk(self, brk: int) -> None:
        """Set the program break in the same step."""
        self.tree = self.tree.with_brk(brk)

    def set_def_flags(self, def_flags: int) -> None:
        """Set the flags of mappings to come, in the same step."""
        self.tree = self.tree.with_def_flags(def_flags)

    # ---- VMAs ----

    def set_vmas(self, lo: int, hi: int, pairs: list[tuple[Vma, int]]) -> None:
        """
        Put VMAs in the place of those that start within ``[lo, hi)``.

        :param pairs: each with the start of the VMA whose anon_vma it takes over, or -1.
        """
        self.steps.append(("vmas", lo, hi, pairs))
        self.tree = self.tree.replace(lo, hi, [vma for vma, _ in pairs])
        origin = self._origin
        origins = [-1 if source < 0 else origin.get(source, source) for _, source in pairs]
        for (vma, _), where in zip(pairs, origins, strict=True):
            origin[vma.start] = where

    def _anon_source(self, vmas: list[Vma]) -> int:
        for vma in vmas:
            if self.anon_vma(vma)[0]:
                return vma.start
        return vmas[0].start
