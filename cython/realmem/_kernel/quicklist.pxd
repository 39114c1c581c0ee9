# Quicklists: per-CPU lists of zeroed pages that feed page tables, and nothing else.
# A table is empty when it is freed, so that the next one need not be zeroed.  Pages on a list
# are allocated ones as far as the page allocator knows (PG_quicklist).
# Mirrors include/linux/quicklist.h and mm/quicklist.c (Linux 5.2, the last that had them).
# Differs: each thread has its own list, tagged with its CPU's node, as with per-CPU pages; and
# drain_all_pages() empties it, which a request does before it fails.  Signal-safe.
from libc.stdint cimport int64_t, uint32_t

from realmem.types cimport machine, page

# A zeroed page of the calling CPU's node: the one that was freed last, or a fresh one.
# Mirrors: quicklist_alloc().
# Returns: NULL when there is no frame.
cdef page* quicklist_alloc(machine* m, uint32_t gfp) noexcept nogil

# Keep a page for the next quicklist_alloc(), or free it when it is of another node.
# Mirrors: quicklist_free().
# Preconditions: every byte of it is zero.
cdef void quicklist_free(machine* m, page* p) noexcept nogil

# Shorten the calling thread's list, if it has more than min_pages, to that or its share of a
# sixteenth of the node's free pages, by max_free pages at most.
# Mirrors: quicklist_trim().
# Returns: pages given back.
cdef int64_t quicklist_trim(machine* m, int64_t min_pages, int64_t max_free) noexcept nogil

# Empty every thread's list; returns pages given back.
cdef int64_t quicklist_trim_all(machine* m) noexcept nogil

# Pages on all lists.
# Mirrors: quicklist_total_size().
cdef int64_t quicklist_total_size(machine* m) noexcept nogil
