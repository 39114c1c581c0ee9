# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Python plans VMAs; a stack is the one that a fault changes.  It raises mm.generation, so that
# a plan made before is made again, and mm.grown, so that Python looks.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport (
    RLIM_AS, RLIM_MEMLOCK, RLIM_STACK, VM_ACCESS, VM_ACCOUNT, VM_GROWSDOWN, VM_LOCKED,
    mm_core, mm_struct, vm_area_struct, vma_cursor, vma_slot, window_of,
)
from realmem._kernel.account cimport vm_stat_account
from realmem._kernel.rmap cimport anon_vma_prepare, rmap_link, rmap_unlink
from realmem._kernel.shmem cimport vm_enough_memory
from realmem._kernel.vmaindex cimport vma_before, vma_first, vma_lower
from realmem.types cimport PAGE_SHIFT, PAGE_SIZE


cdef int expand_stack_locked(mm_struct* mm, vma_slot* slot, uint64_t addr) noexcept nogil:
    cdef vm_area_struct* vma = slot.vma
    cdef uint64_t start = addr & ~<uint64_t>(PAGE_SIZE - 1)
    cdef uint64_t grow = (slot.start - start) >> PAGE_SHIFT
    cdef vma_cursor cursor
    cdef vma_slot* below
    if not vma.vm_flags & VM_GROWSDOWN or start < mm.mmu.mmap_min_addr:
        return -ENOMEM
    vma_first(&mm.vmas, slot.start, &cursor)
    below = vma_before(&cursor)
    # A gap to what may be touched and is no stack itself.
    if below != NULL and (start < below.end or (
            not below.vma.vm_flags & VM_GROWSDOWN and below.vma.vm_flags & VM_ACCESS
            and <int64_t>(start - below.end) < mm.mmu.stack_guard_gap)):
        return -ENOMEM
    # The entry that is to come needs one, and Linux asks before it grows.
    if grow > vma.vm_pgoff or window_of(mm, start) == NULL or anon_vma_prepare(mm, vma) != 0:
        return -ENOMEM
    if not may_grow(mm.core, vma, start, <int64_t>grow):
        return -ENOMEM
    if vma.vm_flags & VM_ACCOUNT:
        if vm_enough_memory(mm.mmu, <int64_t>grow, mm.core.may_reserve, mm.core.total_vm) != 0:
            return -ENOMEM
    rmap_unlink(mm.mmu, vma)
    vma.vm_pgoff -= grow
    vma_lower(&mm.vmas, slot, start)
    rmap_link(mm.mmu, vma)
    vm_stat_account(mm.core, vma.vm_flags, <int64_t>grow)
    mm.generation += 1
    mm.grown = 1
    return 0


# Mirrors: acct_stack_growth().
cdef bint may_grow(const mm_core* core, const vm_area_struct* vma, uint64_t start,
                   int64_t grow) noexcept nogil:
    if <uint64_t>(core.total_vm + grow) > core.rlimits[RLIM_AS] >> PAGE_SHIFT:
        return False
    if vma.vm_end - start > core.rlimits[RLIM_STACK]:
        return False
    if vma.vm_flags & VM_LOCKED and not core.may_lock:
        return <uint64_t>(core.locked_vm + grow) <= core.rlimits[RLIM_MEMLOCK] >> PAGE_SHIFT
    return True
