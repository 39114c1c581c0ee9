# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Binary search in a sorted array.  A change moves the slots behind it: 24 bytes a VMA at
# memory speed, under the lock.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memmove

from realmem._kernel.kernel_caches cimport VM_AREA_STRUCT, kernel_alloc, kernel_free
from realmem._kernel.mm_types cimport mm_struct, vm_area_struct, vma_index, vma_slot
from realmem.types cimport machine


cdef vma_slot* vma_find(vma_index* index, uint64_t addr) noexcept nogil:
    cdef int64_t low = 0
    cdef int64_t high = index.count
    cdef int64_t middle
    while low < high:               # the first slot whose end is above addr
        middle = (low + high) >> 1
        if index.slots[middle].end > addr:
            high = middle
        else:
            low = middle + 1
    return index.slots + low if low < index.count else NULL


# A list of n VMAs; NULL, and nothing of it, without memory.
cdef vm_area_struct* vm_area_alloc(machine* m, int64_t n) noexcept nogil:
    cdef vm_area_struct* list = NULL
    cdef vm_area_struct* vma
    while n > 0:
        vma = <vm_area_struct*>kernel_alloc(m, VM_AREA_STRUCT)
        if vma == NULL:
            while list != NULL:
                vma = list.vm_next
                kernel_free(m, VM_AREA_STRUCT, list)
                list = vma
            return NULL
        vma.vm_next = list
        list = vma
        n -= 1
    return list


cdef inline vm_area_struct* enter(mm_struct* mm, vma_slot* slot, vm_area_struct* vma,
                                  const vm_area_struct* values) noexcept nogil:
    cdef vm_area_struct* next = vma.vm_next
    vma.vm_start = slot.start = values.vm_start
    vma.vm_end = slot.end = values.vm_end
    vma.vm_flags = values.vm_flags
    vma.vm_mm = mm
    vma.vm_next = NULL
    slot.vma = vma
    return next


# As in Linux, a VMA that only changes is not allocated anew.
cdef int vma_splice_locked(mm_struct* mm, int64_t at, int64_t removed,
                           const vm_area_struct* vmas, int64_t added) noexcept nogil:
    cdef vma_index* index = &mm.vmas
    cdef vma_slot* slots = index.slots + at
    cdef int64_t behind = index.count - at - removed
    cdef vm_area_struct* new = NULL
    cdef int64_t i
    if index.count - removed + added > index.capacity:
        return -ENOMEM
    if added > removed:
        new = vm_area_alloc(mm.mmu.m, added - removed)
        if new == NULL:
            return -ENOMEM
    for i in range(added, removed):
        kernel_free(mm.mmu.m, VM_AREA_STRUCT, slots[i].vma)
    if added != removed and behind > 0:
        memmove(slots + added, slots + removed, behind * sizeof(vma_slot))
    for i in range(added):
        if i < removed:
            enter(mm, slots + i, slots[i].vma, vmas + i)
        else:
            new = enter(mm, slots + i, new, vmas + i)
    index.count += added - removed
    return 0


cdef int vma_dup_locked(mm_struct* mm, const mm_struct* other) noexcept nogil:
    cdef vm_area_struct* new = vm_area_alloc(mm.mmu.m, other.vmas.count)
    cdef int64_t i
    if new == NULL and other.vmas.count > 0:
        return -ENOMEM
    for i in range(other.vmas.count):
        new = enter(mm, mm.vmas.slots + i, new, other.vmas.slots[i].vma)
    mm.vmas.count = other.vmas.count
    return 0


cdef void vma_remove_all_locked(mm_struct* mm) noexcept nogil:
    cdef int64_t i
    for i in range(mm.vmas.count):
        kernel_free(mm.mmu.m, VM_AREA_STRUCT, mm.vmas.slots[i].vma)
    mm.vmas.count = 0
