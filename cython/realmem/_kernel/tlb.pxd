# The host's mappings in a window, as a TLB: fills, flushes and protection changes.
# The page tables are the truth.  Every function makes its host calls under mm.lock (invariant
# 7) and keeps the PTEs' host bits and the count of host VMAs.  Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct

# Set addr's entry to `value` (its host bits are ignored) and make the host map its frame with
# at least the access of `host`: HOST_READ or HOST_WRITE, or HOST_NONE for an access that
# does not come through the window.  A host mapping of another frame is replaced, or
# flushed; one of the same frame is kept, and opened where need be.
# Preconditions: what `value` points to is shared with nobody if `value` is writable.
# Returns: 0, or -errno when the host refuses even after flushing; the entry is set then too,
# and nothing is mapped.
cdef int tlb_install_locked(mm_struct* mm, uint64_t addr, uint64_t* pte, uint64_t value,
                            unsigned int host) noexcept nogil

# The host says that it has nothing, where the entry says that it has: with userfaultfd, what it
# reclaimed or never filled.  Have it mapped again.
cdef void tlb_refresh_locked(mm_struct* mm, uint64_t addr, uint64_t* pte) noexcept nogil

# Make the host map what the entries of [start, end) map and it does not yet: one call for a
# run of frames that follow each other.  What the budget or the host has no room for is left
# to faults.
cdef void tlb_fill_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil

# Leave every host mapping in [start, end) the access of `most` at most: HOST_READ or
# HOST_NOACC; with spare_pinned (a fork's, which copies them), all but those of pinned pages.
# Returns: when it returns no store (no access) can reach those frames through a window.
cdef void tlb_protect_locked(mm_struct* mm, uint64_t start, uint64_t end, unsigned int most,
                             bint spare_pinned) noexcept nogil

# Take every host mapping away from [start, end), scratch pages included.
# Returns: when it returns no access can reach what was mapped there.
cdef void tlb_flush_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil
cdef void tlb_flush_window_locked(mm_struct* mm) noexcept nogil

# Put a scratch page over addr for an access that must not reach its frame or has none, so
# that the instruction completes; with show_frame it starts as a copy of the frame.
# Returns: 0, or -errno.
cdef int scratch_map_locked(mm_struct* mm, uint64_t addr, bint show_frame) noexcept nogil
# Whether one is there.
cdef bint scratch_in(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil
# Take all scratch pages away again.
cdef void scratch_flush_locked(mm_struct* mm) noexcept nogil
