# The page allocator's entry points.  Signal-safe unless a line says otherwise.
# Mirrors mm/page_alloc.c (Linux 6.18).
from libc.stdint cimport uint32_t, uint64_t

from realmem.types cimport machine, page, page_run

# Allocate 2**order contiguous pages, starting from the zonelist of node nid
# (-1: the calling CPU's node).
# Mirrors: __alloc_pages() => get_page_from_freelist(), __alloc_pages_slowpath().
# Preconditions: order <= MAX_PAGE_ORDER, gfp_is_valid(gfp), nid is -1 or a node's.
# Returns: the first page with refcount 1, or NULL.
cdef page* alloc_pages_node(machine* m, int nid, uint32_t gfp,
                            unsigned int order) noexcept nogil

# Take one node of an interleave set; counts interleave_hit when it is served there.
# Mirrors: mm/mempolicy.c:alloc_pages_mpol() (MPOL_INTERLEAVE).
cdef page* alloc_page_interleave(machine* m, int nid, uint32_t gfp,
                                 unsigned int order) noexcept nogil

# Allocate up to n order-0 pages into pages_ret; returns how many.
# Mirrors: alloc_pages_bulk_noprof().
cdef uint64_t alloc_pages_bulk(machine* m, int nid, uint32_t gfp, uint64_t n,
                               uint64_t* pfns_ret) noexcept nogil

# Allocate 2**order frames of a run from i, a multiple of that, on, as the request for them would
# be served: counted as it, and only where it would be served by the run's zone at once.
# Returns: NULL: make the request.
# Preconditions: the lock of the address space whose run it is.
cdef page* alloc_run_pages(machine* m, page_run* run, unsigned int i, unsigned int order,
                           int nid, uint32_t gfp) noexcept nogil

# Split an allocated block into order-0 pages that are freed one by one.
# Mirrors: split_page().
cdef void split_page(machine* m, page* p, unsigned int order) noexcept nogil

cdef bint gfp_is_valid(uint32_t gfp) noexcept nogil
