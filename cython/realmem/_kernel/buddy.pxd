# Free areas of one zone: blocks of 2**order pages by migratetype.
# Mirrors mm/page_alloc.c (Linux 6.18).  Everything here is signal-safe.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from realmem.types cimport machine, page, page_run, zone

cdef enum:
    # How an allocation may use a zone; Linux's ALLOC_* (mm/internal.h).
    ALLOC_WMARK_MIN = 0
    ALLOC_WMARK_LOW = 1
    ALLOC_WMARK_HIGH = 2
    ALLOC_NO_WATERMARKS = 0x04
    ALLOC_OOM = 0x08
    ALLOC_NON_BLOCK = 0x10
    ALLOC_MIN_RESERVE = 0x20
    ALLOC_NOFRAGMENT = 0x100
    ALLOC_HIGHATOMIC = 0x200
    ALLOC_KSWAPD = 0x800
    ALLOC_RESERVES = 0x238
    ALLOC_WMARK_MASK = 0x03

# Take one block of 2**order pages from z, from other migratetypes if need be.
# Mirrors: rmqueue_buddy() => __rmqueue() => __rmqueue_smallest(), __rmqueue_claim(),
# __rmqueue_steal().
# Preconditions: z.lock held; order <= MAX_PAGE_ORDER.
# Returns: the first page, its kind still PAGE_BUDDY's leftovers, or NULL.
cdef page* rmqueue_locked(zone* z, unsigned int order, int migratetype,
                          unsigned int alloc_flags) noexcept nogil

# Take what up to 2**most calls of rmqueue_locked() would have given one after the other, as
# long as they would have come from the same free block, which then is cut only once.
# Preconditions: z.lock held; order + most <= MAX_PAGE_ORDER; no ALLOC_HIGHATOMIC.
# Returns: the first page, the run's order in order_ret; or NULL.
cdef page* rmqueue_run_locked(zone* z, unsigned int order, unsigned int most, int migratetype,
                              unsigned int alloc_flags, unsigned int* order_ret) noexcept nogil

# One block of this type's own, or NULL: no other type's pageblock is touched, no run.
cdef page* rmqueue_own_locked(zone* z, unsigned int order, int migratetype) noexcept nogil

# Frames that runs have left are free blocks like others, but looked for last.  Set by run.pyx.
cdef void (*take_back_run)(zone* z, page_run* run) noexcept nogil
# Before a test for blocks of an order: take runs back until a free list has one.
cdef void take_back_for(zone* z, unsigned int order) noexcept nogil

# Put a block back and merge it with its free buddies.
# Mirrors: __free_one_page().
# Preconditions: z.lock held; p heads 2**order pages of z that are on no list.
cdef void free_one_page_locked(zone* z, page* p, uint64_t pfn, unsigned int order,
                               int migratetype, bint to_tail) noexcept nogil

# Put the block whose merging waits where it belongs.  Whoever looks at the free lists
# themselves, or at their counts, does this first.
# Preconditions: z.lock held.
cdef void settle_locked(zone* z) noexcept nogil

# The migratetype of the pageblock that holds pfn.
cdef int get_pageblock_migratetype(const zone* z, uint64_t pfn) noexcept nogil

# Keep a pageblock for atomic allocations after one of order > 0 succeeded; give one back.
# Mirrors: reserve_highatomic_pageblock(), unreserve_highatomic_pageblock().
cdef void reserve_highatomic_pageblock(zone* z, page* p, unsigned int order) noexcept nogil
cdef bint unreserve_highatomic_pageblock(zone* z, bint force) noexcept nogil

# Whether z has more than `mark` + its reserve left after an allocation of this order, given
# `free` free pages, and a block to serve it.  Reads only.
# Mirrors: __zone_watermark_ok().
cdef bint zone_watermark_ok(const zone* z, unsigned int order, uint64_t mark,
                            int highest_zone, unsigned int alloc_flags,
                            int64_t free) noexcept nogil

# Initialise an empty zone's lists; free a range of boot memory into it, in the largest
# aligned blocks, lowest address first.
cdef void init_zone(zone* z) noexcept nogil
cdef void free_boot_range(zone* z, uint64_t start_pfn, uint64_t end_pfn) noexcept nogil
