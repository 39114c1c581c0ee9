"""
The call mremap: resize a mapping, or move it.

Compare mm/mremap.c:do_mremap() of Linux 6.18, whose order of checks, and of what is done by the
time one fails, this follows.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from realmem.arguments import WORD, as_register
from realmem.layout import (
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
)
from realmem.mm.limits import may_expand, mlock_future_ok
from realmem.mm.plan import LOCKED, Plan, fail
from realmem.mm.unmapped_area import get_unmapped_area
from realmem.mm.vma import (
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SEALED,
    VM_SHARED,
    FileRef,
    Vma,
    page_align,
)

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

EXPAND, SHRINK, NO_RESIZE = range(3)
_FLAGS = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP


def mremap(
    mm: MemoryMap, old: int | None, old_size: int, new_size: int, flags: int, new_addr: int | None
) -> int:
    """
    Resize or move what is mapped at ``old``.

    :return: where it is now.
    :raises OSError: EINVAL, EFAULT, ENOMEM, EAGAIN or EPERM, as Linux's.
    """
    addr = 0 if old is None else as_register(old, "old")
    target = 0 if new_addr is None else as_register(new_addr, "new_addr")
    old_len = page_align(as_register(old_size, "old_size")) % WORD
    new_len = page_align(as_register(new_size, "new_size")) % WORD
    flags = as_register(flags, "flags")

    def planner(plan: Plan) -> int:
        remap = Remap(plan, addr, old_len, new_len, flags, target)
        remap.check_params()
        if flags & MREMAP_FIXED and old_len == new_len:
            return _move_all(plan, remap)
        remap.run()
        return remap.result

    return mm.change(planner)


def _move_all(plan: Plan, whole: Remap) -> int:
    """Move every VMA of a range, gaps kept (mm/mremap.c:remap_move())."""
    start, end, target = whole.addr, whole.addr + whole.old_len, whole.new_addr
    result: int | None = None
    last_end = 0
    vma = plan.find(start)
    while vma is not None and vma.start < end:
        addr = max(vma.start, start)
        if result is None and start < addr:
            break
        length = min(end, vma.end) - addr
        if not _many_may_move(vma) and (result is not None or vma.end < end):
            fail(errno.EFAULT, "one of several mappings that can't move together")
        offset = 0 if result is None else vma.start - last_end
        last_end = vma.end
        part = Remap(plan, addr, length, length, whole.flags, target + offset)
        part.run()
        if result is None:
            result = part.result
        target = part.result + length
        # What moved may have merged with what it leaves.
        vma = plan.find(last_end) if last_end < end else None
    if result is None:
        fail(errno.EFAULT, "nothing is mapped at the old address")
    return result


def _many_may_move(vma: Vma) -> bool:
    """Whether MREMAP_FIXED surely gives the place asked for (vma_multi_allowed())."""
    return vma.inode is not None or not isinstance(vma.object, FileRef)


@dataclass(slots=True)
class Remap:
    """
    One mremap, or its part for one VMA (struct vma_remap_struct).

    :ivar result: where the mapping is.
    """

    plan: Plan
    addr: int
    old_len: int
    new_len: int
    flags: int
    new_addr: int
    delta: int = 0
    kind: int = NO_RESIZE
    result: int = 0

    @property
    def _implies_new_addr(self) -> bool:
        return bool(self.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))

    def check_params(self) -> None:
        """Check what can be without looking at VMAs (check_mremap_params())."""
        if self.flags & ~_FLAGS:
            fail(errno.EINVAL, "unknown flags")
        if self.addr % PAGE_SIZE:
            fail(errno.EINVAL, "old address not aligned")
        if not self.new_len or self.new_len > TASK_SIZE:
            fail(errno.EINVAL, "new size")
        if not self._implies_new_addr:
            return
        if self.new_addr > TASK_SIZE - self.new_len or self.new_addr % PAGE_SIZE:
            fail(errno.EINVAL, "new address")
        if not self.flags & MREMAP_MAYMOVE:
            fail(errno.EINVAL, "MREMAP_FIXED and MREMAP_DONTUNMAP need MREMAP_MAYMOVE")
        if self.flags & MREMAP_DONTUNMAP and self.old_len != self.new_len:
            fail(errno.EINVAL, "MREMAP_DONTUNMAP resizes nothing")
        # These sums wrap around in the kernel too.
        if (self.addr + self.old_len) % WORD > self.new_addr:
            if (self.new_addr + self.new_len) % WORD > self.addr:
                fail(errno.EINVAL, "the old and the new range overlap")
        if len(self.plan.tree) + 2 >= self.plan.mm.settings.max_map_count - 3:
            fail(errno.ENOMEM, "vm.max_map_count")

    def run(self) -> None:
        """Remap the VMA that holds ``addr``."""
        vma = self._check_vma()
        if self._implies_new_addr:
            self.result = self._to_new_place(vma)
        elif self.kind == SHRINK:
            self._shrink()
            self.result = self.addr
        elif self.kind == EXPAND:
            self.result = self._expand(vma)
        else:
            self.result = self.addr

    def _check_vma(self) -> Vma:
        """Compare mm/mremap.c:check_prep_vma()."""
        vma = self.plan.tree.at(self.addr)
        if vma is None:
            fail(errno.EFAULT, "nothing is mapped at the old address")
        flags = vma.vm_flags_word
        if flags & VM_SEALED:
            fail(errno.EPERM, "sealed")
        self.delta = abs(self.old_len - self.new_len)
        if self.delta:
            self.kind = SHRINK if self.old_len > self.new_len else EXPAND
        if not self._implies_new_addr:
            self.new_addr = self.addr
            if self.kind != EXPAND:
                return vma
        if not self.old_len and not flags & (VM_SHARED | VM_MAYSHARE):
            fail(errno.EINVAL, "private mappings are not duplicated")
        if self.flags & MREMAP_DONTUNMAP and flags & (VM_DONTEXPAND | VM_PFNMAP):
            fail(errno.EINVAL, "MREMAP_DONTUNMAP of such a mapping")
        if (self.new_len if self.kind == SHRINK else self.old_len) > vma.end - self.addr:
            fail(errno.EFAULT, "the old range goes past the end of its mapping")
        if self.kind == NO_RESIZE or self.kind == SHRINK:
            # Linux goes on with a shrinking move here, whose checks the next ones all pass.
            return vma
        pgoff = vma.pgoff + ((self.addr - vma.start) >> PAGE_SHIFT)
        if pgoff + (self.new_len >> PAGE_SHIFT) >= WORD:
            fail(errno.EINVAL, "the offset of its last page wraps around")
        if flags & (VM_DONTEXPAND | VM_PFNMAP):
            fail(errno.EFAULT, "such a mapping does not grow")
        if not mlock_future_ok(self.plan, flags, self.delta):
            fail(errno.EAGAIN, "RLIMIT_MEMLOCK")
        if not may_expand(self.plan, flags, self.delta >> PAGE_SHIFT):
            fail(errno.ENOMEM, "RLIMIT_AS or RLIMIT_DATA")
        return vma

    def _populate_growth(self, vma: Vma) -> None:
        if self.kind == EXPAND and vma.vm_flags_word & VM_LOCKED:
            start = self.new_addr + self.old_len
            self.plan.populate.append((start, start + self.delta))

    def _shrink(self) -> None:
        start = self.addr + self.new_len
        if start + self.delta > TASK_SIZE:
            fail(errno.EINVAL, "past the end of the address space")
        self.plan.unmap(start, start + self.delta)

    def _to_new_place(self, vma: Vma) -> int:
        """Compare mm/mremap.c:mremap_to()."""
        if self.flags & MREMAP_FIXED:
            self.plan.unmap(self.new_addr, self.new_addr + self.new_len)
            vma = self._reload()
        if self.kind == SHRINK:
            self._shrink()
            vma = self._reload()
            # Linux 6.18 charges the difference once more here and never gives it back.
            self.old_len, self.delta, self.kind = self.new_len, 0, NO_RESIZE
        if self.flags & MREMAP_DONTUNMAP:
            if not may_expand(self.plan, vma.vm_flags_word, self.old_len >> PAGE_SHIFT):
                fail(errno.ENOMEM, "RLIMIT_AS or RLIMIT_DATA")
        self._find_place(vma)
        return self._move(vma)

    def _reload(self) -> Vma:
        vma = self.plan.tree.at(self.addr)
        if vma is None:
            fail(errno.EFAULT, "the old range was unmapped")
        return vma

    def _find_place(self, vma: Vma) -> None:
        hint = self.new_addr if self._implies_new_addr else 0
        shared = vma.vm_flags_word & VM_MAYSHARE
        flags = MAP_SHARED if shared else 0
        if self.flags & MREMAP_FIXED:
            flags |= MAP_FIXED
        self.new_addr = get_unmapped_area(
            self.plan, hint, self.new_len, flags, thp_aligned=vma.object is None and not shared
        )

    def _expand(self, vma: Vma) -> int:
        """Compare mm/mremap.c:expand_vma()."""
        plan = self.plan
        if vma.end - self.addr == self.old_len and self._fits_in_place(vma):
            if vma.vm_flags_word & VM_ACCOUNT:
                plan.charge_pages(self.delta >> PAGE_SHIFT)
            plan.extend(vma, vma.end + self.delta)
            self._account(vma, self.delta)
            self._populate_growth(vma)
            return self.addr
        if not self.flags & MREMAP_MAYMOVE:
            fail(errno.ENOMEM, "no room to grow in place")
        self._find_place(vma)
        return self._move(vma)

    def _fits_in_place(self, vma: Vma) -> bool:
        """Compare mm/mremap.c:vma_expandable()."""
        end = vma.end + self.delta
        mm = self.plan.mm
        return (
            end <= TASK_SIZE
            and not self.plan.tree.overlaps(vma.end, end)
            and (vma.start >= mm.settings.mmap_min_addr or mm.capable("CAP_SYS_RAWIO"))
        )

    def _account(self, vma: Vma, length: int) -> None:
        """Compare mm/mremap.c:vrm_stat_account()."""
        pages = length >> PAGE_SHIFT
        self.plan.account(vma.vm_flags_word, pages)
        if vma.vm_flags_word & VM_LOCKED:
            self.plan.deltas[LOCKED] += pages

    def _move(self, vma: Vma) -> int:
        """Compare mm/mremap.c:move_vma()."""
        plan, addr, old_len = self.plan, self.addr, self.old_len
        if len(plan.tree) >= plan.mm.settings.max_map_count - 3:
            fail(errno.ENOMEM, "vm.max_map_count")
        dontunmap = bool(self.flags & MREMAP_DONTUNMAP)
        if vma.vm_flags_word & VM_ACCOUNT:
            plan.charge_pages((self.new_len if dontunmap else self.delta) >> PAGE_SHIFT)
        new = plan.copy(vma, addr, self.new_len, self.new_addr)
        if old_len:
            plan.move(addr, self.new_addr, old_len)
        self._account(vma, self.new_len)
        if dontunmap:
            self._leave_empty(vma, new)
        elif old_len:
            # What it was charged, the new mapping has taken over.
            plan.remove(plan.gather(addr, addr + old_len), uncharge=False)
        self._populate_growth(vma)
        return self.new_addr

    def _leave_empty(self, vma: Vma, new: Vma) -> None:
        """
        Leave the source mapped without its pages, and unlocked.

        Compare mm/mremap.c:dontunmap_complete(), which unlocks the whole of the VMA, and leaves it
        counted as locked for ever: here VmLck stays the sum of what is locked.
        """
        plan = self.plan
        source = plan.tree.at(self.addr)
        assert source is not None
        whole = self.addr == source.start and self.old_len == source.end - source.start
        if not source.vm_flags_word & VM_LOCKED_MASK and not (whole and source != new):
            return
        if source.vm_flags_word & VM_LOCKED:
            plan.deltas[LOCKED] -= source.pages
            plan.lock(source.start, source.end, False)
        # All its pages have gone: it has never faulted.
        origin = -1 if whole and source != new else source.start
        unlocked = source.with_flags(source.vm_flags_word & ~VM_LOCKED_MASK)
        plan.set_vmas(source.start, source.end, [(unlocked, origin)])


