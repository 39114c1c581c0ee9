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
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from realmem.layout import PAGE_SHIFT
from realmem.mm.tree import VmaTree
from realmem.mm.vma import (
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_SEALED,
    VM_SOFTDIRTY,
    VM_SPECIAL,
    Vma,
    is_data_mapping,
    is_exec_mapping,
)

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

Step = tuple[Any, ...]
KEEP: Any = object()                # an attribute that modify() leaves as it is
TOTAL, DATA, EXEC, STACK, LOCKED = range(5)     # indices of counters and deltas
NONE = (0, False)                   # the anon_vma of what never faulted


def fail(number: int, what: str = "") -> NoReturn:
    """Raise the OSError of an errno."""
    words = os.strerror(number)
    raise OSError(number, f"{words}: {what}" if what else words)


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


class Plan:
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
        self.tree = self.before
        self.steps: list[Step] = []
        self.deltas = [0, 0, 0, 0, 0]
        self.charge = 0
        self.charge_limit = charge_limit
        self.populate: list[tuple[int, int]] = []
        # Where the anon_vma of a VMA of this plan comes from: a published VMA's start, or -1.
        self._origin: dict[int, int] = {}

    # ---- looking ----

    def find(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr`` or the next one above."""
        return self.tree.find(addr)

    def prev(self, addr: int) -> Vma | None:
        """Give the last VMA that starts below ``addr``."""
        return self.tree.prev(addr)

    def anon_vma(self, vma: Vma) -> tuple[int, bool]:
        """
        Give the identity of a VMA's anon_vma, 0 for none, and whether it came with a fork.

        :param vma: one of the working tree.
        """
        origin = self._origin.get(vma.start, vma.start)
        return NONE if origin < 0 else self.mm.core.anon_vma(origin)

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

    def insert(self, vma: Vma, *, only_left: bool = False, copied_from: Vma | None = None) -> Vma:
        """
        Put a VMA where nothing is; it merges with its neighbours where it can.

        Accounts are the caller's.  Compare mm/vma.c:vma_merge_new_range().

        :param only_left: as brk does.
        :param copied_from: the VMA of this tree whose pages it is going to have.
        :return: the VMA that it became part of.
        """
        prev, following = self.tree.prev(vma.start), self.tree.find(vma.start)
        anon = NONE if copied_from is None else self.anon_vma(copied_from)
        left, right = self._neighbours(
            vma, anon, prev, None if only_left else following, may_be_forked=copied_from is None
        )
        sources = [v for v in (left, right, copied_from) if v is not None]
        source = self._anon_source(sources) if sources else -1
        merged = _join(left, vma, right)
        lo = merged.start if left is not None else (vma.start if right is None else right.start)
        self.set_vmas(lo, merged.end, [(merged, source)])
        return merged

    def extend(self, vma: Vma, end: int) -> Vma:
        """
        Lengthen a VMA into free room, up to the next one, with which it may merge.

        Compare mm/vma.c:vma_merge_extend().
        """
        piece = vma.piece(vma.end, end)
        following = self.tree.find(vma.end)
        _, right = self._neighbours(
            piece, self.anon_vma(vma), vma, following, may_be_forked=True
        )
        source = self._anon_source([v for v in (vma, right) if v is not None])
        merged = _join(vma, piece, right)
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
        left, right = self._neighbours(
            middle,
            self.anon_vma(vma) if at_left or at_right else NONE,
            self.tree.prev(start) if at_left else None,
            self.tree.find(end) if at_right else None,
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
        merged = _join(left, middle, right)
        # Linux copies next's anon_vma rather than middle's where prev has none.
        pairs.append(
            (merged, self._anon_source([v for v in (left, right, vma) if v is not None]))
        )
        if not at_right:
            pairs.append((vma.piece(end, vma.end), vma.start))
        lo = vma.start if left is None else left.start
        self.set_vmas(lo, vma.end if right is None else right.end, pairs)
        return merged

    # ---- the rules of merging ----

    def _neighbours(
        self,
        new: Vma,
        anon: tuple[int, bool],
        prev: Vma | None,
        following: Vma | None,
        *,
        may_be_forked: bool,
    ) -> tuple[Vma | None, Vma | None]:
        """Give the neighbours that ``new`` merges with (can_vma_merge_left(), _right())."""
        if new.vm_flags_word & VM_SPECIAL:
            return None, None
        left = right = None
        if (
            prev is not None
            and prev.end == new.start
            and _alike(prev, new)
            and prev.pgoff + prev.pages == new.pgoff
            and self._anon_agrees(prev, anon, may_be_forked)
        ):
            left = prev
        if (
            following is not None
            and following.start == new.end
            and _alike(following, new)
            and following.pgoff == new.pgoff + new.pages
            and self._anon_agrees(following, anon, may_be_forked)
        ):
            right = following
        if left is not None and right is not None:
            one, other = self.anon_vma(left)[0], self.anon_vma(right)[0]
            if one and other and one != other:
                right = None
        return left, right

    def _anon_agrees(self, target: Vma, anon: tuple[int, bool], may_be_forked: bool) -> bool:
        """Whether target can have the pages of both (mm/vma.c:is_mergeable_anon_vma())."""
        theirs, forked = self.anon_vma(target)
        if not theirs and anon[0]:
            return may_be_forked or not anon[1]
        if theirs and not anon[0]:
            return not forked
        return theirs == anon[0]

    def _anon_source(self, vmas: list[Vma]) -> int:
        for vma in vmas:
            if self.anon_vma(vma)[0]:
                return vma.start
        return vmas[0].start


def _alike(one: Vma, other: Vma) -> bool:
    """Whether nothing but place and pages tells them apart (is_mergeable_vma())."""
    return (
        not (one.vm_flags_word ^ other.vm_flags_word) & ~VM_SOFTDIRTY
        and one.object is other.object
        and one.name == other.name
        and one.policy == other.policy
    )


def _join(left: Vma | None, middle: Vma, right: Vma | None) -> Vma:
    """Make one of up to three; soft-dirty if any is."""
    if left is None and right is None:
        return middle
    flags = middle.vm_flags_word
    start, pgoff, end = middle.start, middle.pgoff, middle.end
    if left is not None:
        start, pgoff = left.start, left.pgoff
        flags |= left.vm_flags_word & VM_SOFTDIRTY
    if right is not None:
        end = right.end
        flags |= right.vm_flags_word & VM_SOFTDIRTY
    return Vma(start, end, flags, pgoff, middle.object, middle.policy, middle.name)
