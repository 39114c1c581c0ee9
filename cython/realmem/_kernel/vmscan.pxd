# Reclaim: taking back frames that were not used for long.  Compare mm/vmscan.c (Linux 6.18).
#
# It locks whatever has the page, one at a time, so that nobody calls it who holds an mm.lock or
# an object's.  What is allocated under those asks without __GFP_FS and __GFP_IO, and gets what
# slabs and lists have left; its caller gives up its locks, reclaims, and tries again.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct, mmu

# Who reclaims, for the counters.
cdef enum:
    BY_KSWAPD = 0
    BY_DIRECT = 1

# Have allocations of u's machine reclaim from now on; and no more.
cdef void vmscan_init(mmu* u) noexcept nogil
cdef void vmscan_exit(mmu* u) noexcept nogil

# Take back `want` pages on a node (-1: on all, from the caller's on), or what there is, of zones
# up to the highest that serves.
# Returns: pages.
cdef int64_t reclaim_pages(mmu* u, int nid, int64_t want, int who, int highest) noexcept nogil
# The same for one page, if nobody uses it any more than its one owner.  Mirrors: MADV_PAGEOUT's.
cdef int64_t reclaim_range(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil

# A fault found no frame, and its locks were given up: whether to try again.
# Preconditions: reclaim_begins() under the lock of an mm of u; reclaim_ends() comes afterwards,
# once one is held again or the caller is through with u.
cdef bint reclaim_for_fault(mmu* u, int turn) noexcept nogil
cdef void reclaim_begins(mmu* u) noexcept nogil
cdef void reclaim_ends(mmu* u) noexcept nogil
