# The page allocator's entry points.  Signal-safe unless a line says otherwise.
# Mirrors mm/page_alloc.c (Linux 6.18).
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from realmem.types cimport cpu_area, machine, page, zone

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

# Drop a reference; the last one frees 2**order pages.
# Mirrors: __free_pages() (an extra reference on the head keeps only the head).
# Preconditions: free_check() == 0.
cdef void free_pages(machine* m, page* p, unsigned int order) noexcept nogil
cdef void free_pages_bulk(machine* m, const uint64_t* pfns, uint64_t n) noexcept nogil

cdef enum:
    FREE_OK = 0
    FREE_BAD_PFN = 1            # no frame there
    FREE_RESERVED = 2           # boot memory
    FREE_ALREADY = 3            # the frame is free (double free)
    FREE_TAIL = 4               # inside a block; not its first page
    FREE_WRONG_ORDER = 5
    FREE_MAPPED = 6             # still mapped by a process, or owned by the slab
# Whether 2**order pages at pfn may be freed; reads only.
cdef int free_check(const machine* m, uint64_t pfn, unsigned int order) noexcept nogil

# A reference more; one less (frees the block of the page's own order at zero).
cdef void get_page(page* p) noexcept nogil
cdef void put_page(machine* m, page* p) noexcept nogil

# Split an allocated block into order-0 pages that are freed one by one.
# Mirrors: split_page().
cdef void split_page(machine* m, page* p, unsigned int order) noexcept nogil

cdef bint gfp_is_valid(uint32_t gfp) noexcept nogil

# Empty every per-CPU list of m into the free areas; returns pages moved.
cdef int64_t drain_all_pages(machine* m) noexcept nogil

# The calling thread's data for m; made on first use.  May map memory: not signal-safe
# (the handler uses m.shared_area instead).
cdef cpu_area* get_cpu_area(machine* m) noexcept nogil

# The same for the fault handler, which may meet a thread for the first time: between the
# two, the thread uses its own area of m if it has one, the shared one otherwise.
# return_area takes what borrow_area returned.  Signal-safe.
cdef cpu_area* borrow_area(machine* m) noexcept nogil
cdef void return_area(cpu_area* before) noexcept nogil

# Counts os.fork: a face whose generation differs lives in a child that must not use it.
cdef int fork_generation

# Add to the calling thread's event counter (VM events of types.pxd).
cdef void count_vm_event(machine* m, int event, uint64_t delta) noexcept nogil

# Stop and restart every owner of a per-CPU list (for machine.check()).
cdef void freeze_cpu_areas(machine* m) noexcept nogil
cdef void thaw_cpu_areas(machine* m) noexcept nogil

# Machine life: register before the first allocation (0 or -ENOMEM); forget before the
# memory goes.
cdef int page_alloc_init(machine* m) noexcept nogil
cdef void page_alloc_exit(machine* m) noexcept nogil
