# The huge zero page: made for the first read of empty memory that may have huge pages, given
# back when the last address space that mapped it ends.  (Linux leaves that to a shrinker.)
# A huge entry for it that is split goes on with its frames, as zero pages like any other.
# Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct, mmu

# Become one of its users, if not yet.  Preconditions: mm.lock held.
# Mirrors: mm/huge_memory.c:mm_get_huge_zero_folio().
# Returns: 0; -ENOMEM.
cdef int huge_zero_get_locked(mm_struct* mm) noexcept nogil
# The same for a child whose parent is one.
cdef void huge_zero_dup_locked(mm_struct* child) noexcept nogil
# Preconditions: mm.lock held; mm maps nothing.  Mirrors: mm_put_huge_zero_folio().
cdef void huge_zero_put_locked(mm_struct* mm) noexcept nogil

# Whether a frame is one of its.
cdef inline bint is_huge_zero(const mmu* u, uint64_t pfn) noexcept nogil:
    return u.huge_zero_users > 0 and pfn - u.huge_zero_pfn < 512
