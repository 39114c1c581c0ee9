# Per-CPU page lists of one thread (types.pxd: per_cpu_pages, cpu_area).
# Mirrors mm/page_alloc.c (Linux 6.18).  Signal-safe unless a line says otherwise.
from libc.stdint cimport int64_t, uint64_t

from realmem.compiler cimport unlikely
from realmem.types cimport (
    HPAGE_PMD_ORDER, MIGRATE_MOVABLE, NR_LOWORDER_PCP_LISTS, PAGE_ALLOC_COSTLY_ORDER, cpu_area,
    machine, page, per_cpu_pages, zone,
)

cdef enum:
    PCP_BATCH_SCALE_MAX = 5     # CONFIG_PCP_BATCH_SCALE_MAX

# Orders that per-CPU lists keep; the list of a type and order.
cdef inline bint pcp_allowed_order(unsigned int order) noexcept nogil:
    return order <= PAGE_ALLOC_COSTLY_ORDER or order == HPAGE_PMD_ORDER

cdef inline int order_to_pindex(int migratetype, unsigned int order) noexcept nogil:
    if unlikely(order > PAGE_ALLOC_COSTLY_ORDER):
        return NR_LOWORDER_PCP_LISTS + (migratetype == MIGRATE_MOVABLE)
    return migratetype + 3 * <int>order

# One block of z from this thread's lists, refilled from the free areas when empty.
# Returns: the first page, or NULL when the zone has none.
cdef page* rmqueue_pcplist(cpu_area* area, zone* z, unsigned int order, int migratetype,
                           unsigned int alloc_flags) noexcept nogil

# After a free of this order to list pindex: give pages back if the lists are too long or the
# zone is short.
cdef void shrink_pcp(per_cpu_pages* pcp, zone* z, unsigned int order, int pindex) noexcept nogil

# Give everything back, the quicklist included; returns pages moved.
cdef int64_t drain_area(machine* m, cpu_area* area) noexcept nogil

# Give up to `count` pages of the quicklist back to their zones; returns how many.
# Preconditions: the caller is inside this area, or has stolen it.
cdef int64_t drain_quicklist(machine* m, cpu_area* area, int64_t count) noexcept nogil

# pgalloc and the NUMA counters of one list, added to counts_ret[0] and counts_ret[1..6].
cdef void add_pcp_events(const per_cpu_pages* pcp, uint64_t* counts_ret) noexcept nogil

# Make the fast path ask the slow path again.
cdef void forget_allocs(cpu_area* area) noexcept nogil
cdef void forget_memos(cpu_area* area) noexcept nogil

# Areas: made (NULL when the host has no memory; not for the handler), emptied for another
# machine, their counters added to the machine's, unmapped.
cdef cpu_area* area_new(machine* m) noexcept nogil
cdef void area_reset(machine* m, cpu_area* area) noexcept nogil
cdef void area_fold(machine* m, cpu_area* area) noexcept nogil
cdef void area_free(cpu_area* area) noexcept nogil
