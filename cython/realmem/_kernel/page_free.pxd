# Giving pages back.  Signal-safe.
# Mirrors mm/page_alloc.c (Linux 6.18).
from libc.stdint cimport uint64_t

from realmem.types cimport machine, page

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
