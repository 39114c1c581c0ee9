# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Binary search in a sorted array.  A change moves the slots behind it: 32 bytes a VMA at
# memory speed, under the lock, with no allocation.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memmove

from realmem._kernel.mm_types cimport vma_index, vma_slot


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


cdef int vma_splice_locked(vma_index* index, int64_t at, int64_t removed,
                           const vma_slot* slots, int64_t added) noexcept nogil:
    cdef int64_t behind = index.count - at - removed
    if index.count - removed + added > index.capacity:
        return -ENOMEM
    if added != removed and behind > 0:
        memmove(index.slots + at + added, index.slots + at + removed,
                behind * sizeof(vma_slot))
    if added > 0:
        memcpy(index.slots + at, slots, added * sizeof(vma_slot))
    index.count += added - removed
    return 0
