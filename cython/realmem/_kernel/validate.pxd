# Recount everything.  A separate family: the allocator assumes health, this does not.
from libc.stdint cimport int64_t, uint8_t, uint64_t

from realmem.types cimport machine

# What was found wrong first, and where.
cdef enum:
    VALID = 0
    BAD_LINK = 1                # a list's neighbours disagree
    BAD_STATE = 2               # a frame on a list does not say so
    BAD_ORDER = 3               # ... or says another order
    BAD_TYPE = 4                # ... or stands on another migratetype's list
    BAD_ALIGNMENT = 5           # a block does not begin at a multiple of its size
    BAD_ZONE = 6                # a frame on a list of a zone that it is not of
    DOUBLY_LISTED = 7           # a frame in two places
    UNMERGED = 8                # two free buddies
    BAD_NR_FREE = 9             # a free area's count differs from its list
    BAD_MASK = 10               # area_mask differs from the lists
    BAD_FREE_PAGES = 11         # zone.free_pages differs from the lists
    BAD_PCP_COUNT = 12          # a per-CPU list's count differs from the list
    LOST_FRAME = 13             # a frame in no place
    BAD_REFCOUNT = 14           # allocated without reference, or free with one
    BAD_COMPOUND = 15           # a tail does not point to its head
    BAD_HIGHATOMIC = 16         # reserve counter differs from the pageblocks
    BAD_EVENTS = 17             # pgalloc - pgfree is not what is allocated
    BAD_NUMA = 18               # numa_hit + numa_miss != numa_local + numa_other, ...
    BAD_MANAGED = 19            # managed pages differ from the sum of all places
    BAD_RESERVED = 20           # a reserved frame outside the struct page array
    BAD_PAGEBLOCK = 21          # a free block's list differs from its pageblock's type
    BAD_QUICKPAGE = 22          # a frame on a quicklist does not say so, or is of another node
    BAD_QUICKLIST = 23          # a quicklist's count differs from the list, or from the frames
    BAD_TABLE = 24              # a frame on a quicklist is not zero
    BAD_RUN = 25                # a run's links, or its pageblock's, or its count of frames left

cdef struct finding:
    int what                    # VALID or BAD_*
    int index                   # zone
    uint64_t pfn
    int64_t expected
    int64_t found
    int64_t quick               # frames seen so far that say they are on a quicklist

# Recount m into ret.  `seen` has m.max_pfn bytes, all zero.
# Context: not inside an area; stops every user of m while it runs.
cdef void validate_machine(machine* m, uint8_t* seen, finding* ret) noexcept nogil

# Where a machine's pages are, by its counters alone.
cdef struct balance:
    int64_t managed
    int64_t free
    int64_t listed              # in per-CPU lists
    int64_t allocated           # pgalloc - pgfree

# Context: as validate_machine(), for as long as summing takes.
cdef void balance_machine(machine* m, balance* ret) noexcept nogil
