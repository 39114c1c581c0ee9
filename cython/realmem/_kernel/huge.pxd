# What is done to a huge entry as a whole.  Signal-safe; mm.lock held.
# Compare mm/huge_memory.c.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct

# Share what a huge entry at `base` maps with a child: both are huge and read-only then.
# Its table, `to`, is there and empty; the host's mappings are write-protected.
# Mirrors: copy_huge_pmd().
# Returns: whether it was; otherwise the parent's was split, since a page of it is pinned or no
# memory is left for the child's.
cdef bint copy_huge_locked(mm_struct* parent, mm_struct* child, uint64_t base,
                           uint64_t* to) noexcept nogil

# Move a huge entry to where nothing is.
# Preconditions: the table that `to` begins is there, and room for a shadow was set aside.
# Mirrors: move_huge_pmd().
cdef void move_huge_locked(mm_struct* mm, uint64_t base, uint64_t new,
                           uint64_t* to) noexcept nogil

# Make every page of a huge entry this process's own, if nobody else has one of them; for a
# store, writable and dirty, too.
# Mirrors: do_huge_pmd_wp_page().
# Returns: whether they are.
cdef bint reuse_huge_locked(mm_struct* mm, uint64_t addr, bint write) noexcept nogil

# Have the host map all 2 MiB of a huge entry in one go.  What is pinned, or would be open for
# stores that nobody noticed yet, is left to faults.
cdef void fill_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil

# The accessed, dirty and soft-dirty bits of a huge entry's 512: a processor sets its own for all.
cdef uint64_t huge_bits_locked(mm_struct* mm, uint64_t addr) noexcept nogil
