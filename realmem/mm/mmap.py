"""
The call mmap, with Linux's errors in Linux's order.

Compare mm/mmap.c:ksys_mmap_pgoff() => do_mmap(), mm/vma.c:mmap_region().
"""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from realmem.arguments import WORD, as_register
from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGE_MASK,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_STACK,
    MAP_TYPE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)
from realmem.mm.limits import can_do_mlock, may_expand, mlock_future_ok
from realmem.mm.mapfile import Opened, opened
from realmem.mm.plan import LOCKED, Plan, fail
from realmem.mm.settings import OVERCOMMIT_NEVER
from realmem.mm.unmapped_area import get_unmapped_area, round_hint
from realmem.mm.vma import (
    VM_ACCOUNT,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAY_ALL,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    FileRef,
    Vma,
    is_accountable,
    page_align,
)

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

# What PR_SET_MEMORY_MERGE passes over (mm/ksm.c:vma_ksm_compatible()).
UNMERGEABLE = VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_DROPPABLE
HUGE_SHIFTS = {0: 21, 21: 21, 30: 30}       # what MAP_HUGE_* may say, 0 for the default


def mmap(
    mm: MemoryMap, addr: int | None, length: int, prot: int, flags: int, file: object, offset: int
) -> int:
    """
    Map anonymous memory or a file, private or shared.

    :return: the address.
    :raises OSError: as Linux's; EOPNOTSUPP for devices other than /dev/zero.
    """
    hint = 0 if addr is None else as_register(addr, "addr")
    length = as_register(length, "length")
    prot, flags = as_register(prot, "prot"), as_register(flags, "flags")
    offset = as_register(offset, "offset")
    if offset % PAGE_SIZE:
        fail(errno.EINVAL, "offset not aligned")
    huge = 0
    anonymous = bool(flags & MAP_ANONYMOUS)
    if flags & MAP_HUGETLB and anonymous:
        huge = HUGE_SHIFTS.get(flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK, 0)
        if not huge:
            fail(errno.EINVAL, "no huge pages of that size")
        length = (length + (1 << huge) - 1) & -(1 << huge) & WORD - 1
    with nullcontext() if anonymous else opened(file, flags, prot) as real:
        if flags & MAP_HUGETLB and not huge:
            fail(errno.EINVAL, "MAP_HUGETLB of a file that is not of huge pages")
        with frames_of(real, mm, flags) as inode:
            call = _Mmap(mm, hint, length, prot, flags, real, inode, offset >> PAGE_SHIFT, huge)
            return mm.change(call)


def frames_of(file: Opened | None, mm: MemoryMap, flags: int) -> AbstractContextManager[Any]:
    """Give the frames of a regular file that is readable; None of what has none."""
    if file is None or not file.regular or not file.readable:
        return nullcontext()
    return file.frames(mm.core, flags)


class _Mmap:
    """One call: its arguments, and its planner."""

    __slots__ = (
        "backing", "file", "flags", "hint", "huge", "inode", "length", "mm", "pgoff", "prot",
    )  # fmt: skip

    def __init__(
        self,
        mm: MemoryMap,
        hint: int,
        length: int,
        prot: int,
        flags: int,
        file: Opened | None,
        inode: Any,
        pgoff: int,
        huge: int,
    ) -> None:
        self.mm = mm
        self.hint = hint
        self.length = length
        self.prot = prot
        self.flags = flags
        self.file = file
        self.inode = inode
        self.pgoff = pgoff
        self.huge = huge
        self.backing: Any = None

    def __call__(self, plan: Plan) -> int:
        """Plan it (do_mmap())."""
        mm, flags, file = self.mm, self.flags, self.file
        if self.length == 0:
            fail(errno.EINVAL, "length 0")
        if flags & MAP_FIXED_NOREPLACE:
            flags |= MAP_FIXED
        addr = self.hint if flags & MAP_FIXED else round_hint(mm, self.hint)
        length = page_align(self.length)
        if length >= WORD:
            fail(errno.ENOMEM, "length")
        if self.pgoff + (length >> PAGE_SHIFT) >= WORD:
            fail(errno.EOVERFLOW, "offset")
        if len(plan.tree) > mm.settings.max_map_count:
            fail(errno.ENOMEM, "vm.max_map_count")
        vm_flags = vm_flags_of(self.prot, flags) | plan.tree.def_flags
        if self.huge:
            addr = self._huge_area(plan, addr, length, flags)
        else:
            addr = get_unmapped_area(
                plan,
                addr,
                length,
                flags,
                thp_aligned=file is None and not flags & MAP_SHARED,
            )
        if flags & MAP_FIXED_NOREPLACE and plan.tree.overlaps(addr, addr + length):
            fail(errno.EEXIST)
        if flags & MAP_LOCKED and not can_do_mlock(mm):
            fail(errno.EPERM, "RLIMIT_MEMLOCK is 0")
        if not mlock_future_ok(plan, vm_flags, length):
            fail(errno.EAGAIN, "RLIMIT_MEMLOCK")
        if file is not None:
            vm_flags = file.check(flags, self.prot, vm_flags, length, self.pgoff)
            if file.zero and vm_flags & VM_SHARED and self.pgoff:
                fail(errno.EOPNOTSUPP, "shared mappings of /dev/zero begin at 0")
        else:
            vm_flags = _anonymous(flags, vm_flags)
        if flags & MAP_NORESERVE and mm.settings.overcommit_memory != OVERCOMMIT_NEVER:
            vm_flags |= VM_NORESERVE
        self._region(plan, addr, length, vm_flags)
        if vm_flags & VM_LOCKED or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE:
            plan.populate.append((addr, addr + length))
        return addr

    def _region(self, plan: Plan, addr: int, length: int, vm_flags: int) -> None:
        """Put it in, in the place of what is there (mm/vma.c:mmap_region())."""
        if vm_flags & UNMERGEABLE:
            vm_flags &= ~VM_MERGEABLE
        pages = length >> PAGE_SHIFT
        found = plan.gather(addr, addr + length)
        if self.huge:
            # hugetlb_reserve_pages() finds none when what was there has already gone.
            plan.remove(found)
            fail(errno.ENOMEM, "no huge pages are reserved")
        charge = pages - found.nr_accounted if is_accountable(vm_flags) else 0
        try:
            if not may_expand(plan, vm_flags, pages - found.nr_pages):
                fail(errno.ENOMEM, "RLIMIT_AS or RLIMIT_DATA")
            if is_accountable(vm_flags):
                vm_flags |= VM_ACCOUNT
                plan.charge_pages(charge)
        except OSError:
            plan.abandon(found)
            raise
        plan.remove(found, uncharge=not is_accountable(vm_flags))
        backing, pgoff = self._behind(pages, vm_flags)
        vma = Vma(addr, addr + length, vm_flags | VM_SOFTDIRTY, pgoff, backing)
        # What cannot be locked loses the flag once it is there: no neighbour has it by then.
        unlocked = bool(vm_flags & VM_LOCKED and vm_flags & (VM_SPECIAL | VM_DROPPABLE))
        if unlocked:
            vma = vma.with_flags(vma.vm_flags_word & ~VM_LOCKED_MASK)
        elif vm_flags & VM_LOCKED:
            plan.deltas[LOCKED] += pages
        plan.account(vm_flags, pages)
        plan.insert(vma, left=not unlocked, right=not unlocked)

    def _behind(self, pages: int, vm_flags: int) -> tuple[Any, int | None]:
        """Give what is mapped, the same when planned again, and from which page on."""
        if self.inode is None and vm_flags & VM_SHARED:
            if self.backing is None:
                self.backing = self.mm.core.shmem_create(pages, bool(vm_flags & VM_NORESERVE))
            return self.backing, 0
        if self.file is None:
            return None, None
        if self.backing is None:
            shown = self.file.writable or self.mm.capable("CAP_FOWNER")
            self.backing = FileRef(self.file.path, self.inode, shown)
        return self.backing, self.pgoff

    def _huge_area(self, plan: Plan, addr: int, length: int, flags: int) -> int:
        """Compare fs/hugetlbfs/inode.c:hugetlb_get_unmapped_area()."""
        size = 1 << self.huge
        if flags & MAP_FIXED:
            if addr % size:
                fail(errno.EINVAL, "address not aligned to the huge page size")
            return get_unmapped_area(plan, addr, length, flags)
        addr = get_unmapped_area(plan, (addr + size - 1) & -size, length + size, flags)
        return (addr + size - 1) & -size


def vm_flags_of(prot: int, flags: int) -> int:
    """Translate PROT_* and MAP_* bits (calc_vm_prot_bits(), calc_vm_flag_bits())."""
    word = VM_MAY_ALL
    if prot & PROT_READ:
        word |= VM_READ
    if prot & PROT_WRITE:
        word |= VM_WRITE
    if prot & PROT_EXEC:
        word |= VM_EXEC
    if flags & MAP_GROWSDOWN:
        word |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        word |= VM_LOCKED
    if flags & MAP_STACK:
        word |= VM_NOHUGEPAGE
    return word


def _anonymous(flags: int, vm_flags: int) -> int:
    """Add what the kind of an anonymous mapping says, and refuse what it excludes."""
    kind = flags & MAP_TYPE
    if kind == MAP_SHARED:
        if vm_flags & VM_GROWSDOWN:
            fail(errno.EINVAL, "MAP_GROWSDOWN with MAP_SHARED")
        return vm_flags | VM_SHARED | VM_MAYSHARE
    if kind == MAP_DROPPABLE:
        if flags & (MAP_LOCKED | MAP_HUGETLB):
            fail(errno.EINVAL, "MAP_DROPPABLE with MAP_LOCKED or MAP_HUGETLB")
        if vm_flags & VM_GROWSDOWN:
            fail(errno.EINVAL, "MAP_DROPPABLE with MAP_GROWSDOWN")
        return vm_flags | VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP
    if kind != MAP_PRIVATE:
        fail(errno.EINVAL, "neither MAP_SHARED nor MAP_PRIVATE")
    return vm_flags
