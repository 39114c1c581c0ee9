# The published VMAs of one address space: a sorted array that Python changes by splicing.
# Everything here is signal-safe.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct, vm_area_struct, vma_index, vma_slot

# Room for more VMAs than Linux allows a process; reserved only, so that it costs what is used.
cdef enum: VMA_INDEX_CAPACITY = 131072

# The VMA that holds addr, or the next one above; NULL when there is none.
# Mirrors: mm/mmap.c:find_vma().
cdef vma_slot* vma_find(vma_index* index, uint64_t addr) noexcept nogil

# Replace the VMAs [at, at + removed) by copies of `added` others.
# Preconditions: mm.lock held; the result is sorted and does not overlap.
# Returns: 0, or -ENOMEM with nothing changed: past the capacity, or no memory for them.
cdef int vma_splice_locked(mm_struct* mm, int64_t at, int64_t removed,
                           const vm_area_struct* vmas, int64_t added) noexcept nogil

# Give mm, which has none, copies of another's: 0 or -ENOMEM.  And free all that it has.
# Preconditions: mm's lock held, and the other's.
cdef int vma_dup_locked(mm_struct* mm, const mm_struct* other) noexcept nogil
cdef void vma_remove_all_locked(mm_struct* mm) noexcept nogil
