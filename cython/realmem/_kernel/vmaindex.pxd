# The published VMAs of one address space: a sorted array that Python changes by splicing.
# Everything here is signal-safe.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport vma_index, vma_slot

# Room for more VMAs than Linux allows a process; reserved only, so that it costs what is used.
cdef enum: VMA_INDEX_CAPACITY = 131072

# The VMA that holds addr, or the next one above; NULL when there is none.
# Mirrors: mm/mmap.c:find_vma().
cdef vma_slot* vma_find(vma_index* index, uint64_t addr) noexcept nogil

# Replace slots [at, at + removed) by `added` new ones.
# Preconditions: mm.lock held; the result is sorted and does not overlap.
# Returns: 0, or -ENOMEM past the capacity with nothing changed.
cdef int vma_splice_locked(vma_index* index, int64_t at, int64_t removed,
                           const vma_slot* slots, int64_t added) noexcept nogil
