"""
A change of an address space, planned aside: Linux's own primitives on a working tree.

A planner is a function of a Plan.  It looks at ``plan.tree`` (through ``find`` and its like),
calls primitives, each O(log n), and raises OSError where Linux fails; what it planned before that
is what Linux has done by then, and is committed all the same (see MemoryMap.change()).  So checks
come first where Linux checks first, and nowhere else.

    def planner(plan: Plan) -> int:
        plan.unmap(start, end)
        return plan.insert(Vma(start, end, flags)).start

    result = mm.change(planner)

Compare mm/vma.c.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from realmem.layout import PAGE_SHIFT
from realmem.mm.draft import DATA, EXEC, LOCKED, STACK, TOTAL, Draft, Step, fail
from realmem.mm.merge import NO_ANON, join, neighbours
from realmem.mm.vma import VM_ACCOUNT, VM_LOCKED, VM_SEALED, Vma

KEEP: Any = object()                # an attribute that modify() leaves as it is


@dataclass(slots=True)
class Unmapping:
    """
    What Plan.gather() found in a range (struct vma_munmap_struct).

    :ivar vmas: the VMAs that hold any of it, whole.
    :ivar nr_pages: mapped pages within the range.
    :ivar nr_accounted: those of them that were charged.
    """

    start: int
    end: int
    vmas: list[Vma]
    nr_pages: int = 0
    nr_accounted: int = 0


class Plan(Draft):
    """Linux's primitives; see Draft for what is planned so far."""

    def split(self, addr: int) -> None:
        """
        Cut the VMA that holds ``addr`` there, unless it starts there (mm/vma.c:split_vma()).

        :raises OSError: ENOMEM, at vm.max_map_count.
        """
        vma = self.tree.at(addr)
        if vma is None or vma.start == addr:
            return
        if len(self.tree) >= self.mm.settings.max_map_count:
            fail(errno.ENOMEM, "vm.max_map_count")
        self._split(vma, addr)

    def _split(self, vma: Vma, addr: int) -> None:
        at = vma.start
        self.set_vmas(
            at, vma.end, [(vma.piece(at, addr), at), (vma.piece(addr, vma.end), at)]
        )

    def gather(self, start: int, end: int) -> Unmapping:
        """
        Look at what unmapping a range would take, and refuse what can't be unmapped.

        Compare mm/vma.c:vms_gather_munmap_vmas(), which splits first and checks then: a split at
        the start stays when it refuses.

        :raises OSError: ENOMEM, vm.max_map_count; EPERM, a sealed VMA.
        """
        vmas = self.tree.span(start, end)
        found = Unmapping(start, end, vmas)
        if not vmas:
            return found
        first = vmas[0]
        if first.start < start:
            if end < first.end and len(self.tree) >= self.mm.settings.max_map_count:
                fail(errno.ENOMEM, "vm.max_map_count")
            if first.vm_flags_word & VM_SEALED:
                fail(errno.EPERM, "sealed")
        for vma in vmas:
            flags = vma.vm_flags_word
            if flags & VM_SEALED:
                if first.start < start:
                    self._split(first, start)
                fail(errno.EPERM, "sealed")
            pages = (min(vma.end, end) - max(vma.start, start)) >> PAGE_SHIFT
            found.nr_pages += pages
            if flags & VM_ACCOUNT:
                found.nr_accounted += pages
        return found

    def abandon(self, found: Unmapping) -> None:
        """Leave VMAs cut at the ends of a range that is not unmapped after all."""
        if found.vmas:
            first, last = found.vmas[0], found.vmas[-1]
            if first.start < found.start:
                self._split(first, found.start)
            if last.end > found.end:
                here = self.tree.at(found.end)
                assert here is not None
                self._split(here, found.end)

    def remove(self, found: Unmapping, *, uncharge: bool = True) -> None:
        """
        Unmap what gather() found (mm/vma.c:vms_complete_munmap_vmas()).

        :param uncharge: give back what was charged; False where the caller takes it over.
        """
        vmas = found.vmas
        if not vmas:
            return
        start, end, first, last = found.start, found.end, vmas[0], vmas[-1]
        rest = []
        if first.start < start:
            rest.append((first.piece(first.start, start), first.start))
        if last.end > end:
            rest.append((last.piece(end, last.end), last.start))
        for vma in vmas:
            if vma.vm_flags_word & VM_LOCKED:
                self.lock(max(vma.start, start), min(vma.end, end), False)
        self.set_vmas(first.start, last.end, rest)
        self.zap(max(first.start, start), min(last.end, end))
        for vma in vmas:
            pages = (min(vma.end, end) - max(vma.start, start)) >> PAGE_SHIFT
            self.account(vma.vm_flags_word, -pages)
            if vma.vm_flags_word & VM_LOCKED:
                self.deltas[LOCKED] -= pages
        if uncharge:
            self.charge -= found.nr_accounted

    def unmap(self, start: int, end: int) -> None:
        """
        Take what is mapped in a range away (mm/vma.c:do_vmi_align_munmap()).

        :raises OSError: ENOMEM, vm.max_map_count; EPERM, a sealed VMA.
        """
        self.remove(self.gather(start, end))

    def insert(
        self, vma: Vma, *, left: bool = True, right: bool = True, copied_from: Vma | None = None
    ) -> Vma:
        """
        Put a VMA where nothing is; it merges with its neighbours where it can.

        Accounts are the caller's.  Compare mm/vma.c:vma_merge_new_range().

        :param left: whether it may merge with the VMA below, ``right`` with the one above.
        :param copied_from: the VMA of this tree whose pages it is going to have.
        :return: the VMA that it became part of.
        """
        before, after = neighbours(
            vma,
            NO_ANON if copied_from is None else self.anon_vma(copied_from),
            self.tree.prev(vma.start) if left else None,
            self.tree.find(vma.start) if right else None,
            self.anon_vma,
            may_be_forked=copied_from is None,
        )
        merged = join(before, vma, after)
        sources = [v for v in (before, after, copied_from) if v is not None]
        lo = before.start if before is not None else vma.start
        hi = after.end if after is not None else merged.end
        self.set_vmas(lo, hi, [(merged, self._anon_source(sources) if sources else -1)])
        return merged

    def extend(self, vma: Vma, end: int) -> Vma:
        """
        Lengthen a VMA into free room, up to the next one, with which it may merge.

        Compare mm/vma.c:vma_merge_extend().
        """
        piece = vma.piece(vma.end, end)
        following = self.tree.find(vma.end)
        _, right = neighbours(
            piece, self.anon_vma(vma), vma, following, self.anon_vma, may_be_forked=True
        )
        source = self._anon_source([v for v in (vma, right) if v is not None])
        merged = join(vma, piece, right)
        self.set_vmas(vma.start, merged.end, [(merged, source)])
        return merged

    def copy(self, vma: Vma, old: int, length: int, new: int) -> Vma:
        """
        Make a VMA at ``new`` for the pages of ``vma`` from ``old`` on (mm/vma.c:copy_vma()).

        One that never faulted gets the page offset of its new place, else it keeps its own.  It
        may merge with ``vma`` itself.  Accounts are the caller's.

        :return: the VMA that it became part of.
        """
        pgoff = vma.pgoff + ((old - vma.start) >> PAGE_SHIFT)
        if vma.private_anon and not self.anon_vma(vma)[0]:
            pgoff = new >> PAGE_SHIFT
        twin = Vma(
            new, new + length, vma.vm_flags_word, pgoff, vma.object, vma.policy, vma.name
        )
        return self.insert(twin, copied_from=vma)

    def modify(
        self, start: int, end: int, *, flags: int = KEEP, policy: Any = KEEP, name: Any = KEEP
    ) -> Vma:
        """
        Change attributes of a range that lies in one VMA: it is merged or split as Linux does.

        Accounts are the caller's.  Compare mm/vma.c:vma_modify().

        :return: the VMA that holds the range now.
        :raises OSError: ENOMEM, a split that vm.max_map_count forbids; a first one may be done.
        """
        vma = self.tree.at(start)
        if vma is None or vma.end < end or start >= end:
            raise ValueError(f"no one VMA holds {start:#x}-{end:#x}")
        middle = Vma(
            start,
            end,
            vma.vm_flags_word if flags is KEEP else flags,
            vma.pgoff + ((start - vma.start) >> PAGE_SHIFT),
            vma.object,
            vma.policy if policy is KEEP else policy,
            vma.name if name is KEEP else name,
        )
        at_left, at_right = vma.start == start, vma.end == end
        left, right = neighbours(
            middle,
            self.anon_vma(vma) if at_left or at_right else NO_ANON,
            self.tree.prev(start) if at_left else None,
            self.tree.find(end) if at_right else None,
            self.anon_vma,
            may_be_forked=False,
        )
        pairs: list[tuple[Vma, int]] = []
        if left is None and right is None:
            room = self.mm.settings.max_map_count - len(self.tree)
            if not (at_left and at_right) and room <= 0:
                fail(errno.ENOMEM, "vm.max_map_count")
            if not (at_left or at_right) and room == 1:
                self._split(vma, start)
                fail(errno.ENOMEM, "vm.max_map_count")
        if not at_left:
            pairs.append((vma.piece(vma.start, start), vma.start))
        merged = join(left, middle, right)
        # Linux copies next's anon_vma rather than middle's where prev has none.
        pairs.append(
            (merged, self._anon_source([v for v in (left, right, vma) if v is not None]))
        )
        if not at_right:
            pairs.append((vma.piece(end, vma.end), vma.start))
        lo = vma.start if left is None else left.start
        self.set_vmas(lo, vma.end if right is None else right.end, pairs)
        return merged


__all__ = [
    "DATA",
    "EXEC",
    "KEEP",
    "LOCKED",
    "STACK",
    "TOTAL",
    "Plan",
    "Step",
    "Unmapping",
    "fail",
]
