# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Quicklists.  The list itself stands in the thread's area (types.pxd: cpu_area.quick), and is
# worked on between area_enter() and area_exit() like the per-CPU page lists beside it.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport free_pages
from realmem._kernel.pcp cimport drain_quicklist
from realmem._kernel.percpu cimport (
    area_enter, area_exit, area_set_cpu, attach_areas, freeze_cpu_areas, thaw_cpu_areas,
)
from realmem.compiler cimport likely, peek64, spin_lock, spin_unlock, this_cpu_id, unlikely
from realmem.types cimport (
    COUNTS_NEW, GFP_ZERO, MAX_NR_ZONES, PAGE_SHIFT, PG_quicklist, ZONE_NORMAL, cpu_area,
    machine, page, page_address, page_zone, pfn_to_page, quicklist,
)

cdef enum: FRACTION_OF_NODE_MEM = 16


cdef page* quicklist_alloc(machine* m, uint32_t gfp) noexcept nogil:
    cdef cpu_area* area = enter(m)
    cdef quicklist* q = &area.quick
    cdef uint64_t* at = q.page
    cdef page* p
    if likely(at != NULL and q.nid == area.nid):
        q.page = <uint64_t*>at[0]
        q.nr_pages -= 1
        at[0] = 0
        p = pfn_to_page(m, (<uint64_t>at - m.direct_map) >> PAGE_SHIFT)
        p.flags &= ~(<uint64_t>1 << PG_quicklist)
        area_exit(area)
        return p
    area_exit(area)
    return alloc_pages_node(m, -1, gfp | GFP_ZERO, 0)


cdef void quicklist_free(machine* m, page* p) noexcept nogil:
    cdef cpu_area* area = enter(m)
    cdef quicklist* q = &area.quick
    cdef int nid = page_zone(m, p).nid
    cdef uint64_t* at
    # A page that somebody else took a reference to is not ours to keep.
    if unlikely(nid != area.nid or p.counts.word != COUNTS_NEW):
        area_exit(area)
        free_pages(m, p, 0)
        return
    if unlikely(q.nid != nid):
        drain_quicklist(m, area, q.nr_pages)    # the thread moved: these are off-node now
        q.nid = nid
    at = <uint64_t*>page_address(m, p)
    at[0] = <uint64_t>q.page
    q.page = at
    q.nr_pages += 1
    p.flags |= <uint64_t>1 << PG_quicklist
    area_exit(area)


# The calling thread's area, with the node that it runs on now.
cdef inline cpu_area* enter(machine* m) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    if unlikely(this_cpu_id() != area.cpu):
        area_set_cpu(area)
    return area


cdef int64_t quicklist_trim(machine* m, int64_t min_pages, int64_t max_free) noexcept nogil:
    cdef cpu_area* area = enter(m)
    cdef int64_t pages = area.quick.nr_pages
    cdef int64_t freed = 0
    if unlikely(pages > min_pages):
        freed = drain_quicklist(m, area, min(pages - max_pages(m, area.nid, min_pages), max_free))
    area_exit(area)
    return freed


# How long a list may stay: compare mm/quicklist.c:max_pages().
cdef int64_t max_pages(machine* m, int nid, int64_t min_pages) noexcept nogil:
    cdef int64_t most = 0
    cdef int kind
    for kind in range(ZONE_NORMAL + 1):
        most += peek64(&m.zones[nid * MAX_NR_ZONES + kind].free_pages)
    most /= FRACTION_OF_NODE_MEM
    most /= max(m.nodes[nid].nr_cpus, 1)
    return max(most, min_pages)


cdef int64_t quicklist_trim_all(machine* m) noexcept nogil:
    cdef cpu_area* area
    cdef int64_t freed = 0
    freeze_cpu_areas(m)
    area = m.areas
    while area != NULL:
        freed += drain_quicklist(m, area, area.quick.nr_pages)
        area = area.next
    thaw_cpu_areas(m)
    return freed


cdef int64_t quicklist_total_size(machine* m) noexcept nogil:
    cdef cpu_area* area
    cdef int64_t pages = 0
    spin_lock(&m.areas_lock)
    area = m.areas
    while area != NULL:
        pages += area.quick.nr_pages
        area = area.next
    spin_unlock(&m.areas_lock)
    return pages


attach_areas()
