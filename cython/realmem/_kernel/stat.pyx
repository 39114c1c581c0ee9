# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Counters summed over the threads' areas.  Compare mm/vmstat.c:sum_vm_events().
from libc.stdint cimport uint64_t

from realmem._kernel.pcp cimport add_pcp_events
from realmem._kernel.slab_types cimport slab_of
from realmem.compiler cimport spin_lock, spin_unlock
from realmem.types cimport (
    MAX_PAGE_ORDER, MIGRATE_RECLAIMABLE, NR_VM_EVENT_ITEMS, NR_VM_NUMA_EVENT_ITEMS,
    PAGEBLOCK_NR_PAGES, PAGE_ALLOCATED, PAGE_BUDDY, PG_active, PG_anon, PG_dirty, PG_file,
    PG_mlocked, PG_slab, PG_swapbacked, PG_table, cpu_area, machine, node, page, page_kind,
    pfn_to_page,
)


cdef void sum_zone_events(machine* m, int index, uint64_t* counts_ret) noexcept nogil:
    cdef const uint64_t* folded = m.zone_events + index * (1 + NR_VM_NUMA_EVENT_ITEMS)
    cdef cpu_area* area
    cdef int i
    spin_lock(&m.areas_lock)
    for i in range(1 + NR_VM_NUMA_EVENT_ITEMS):
        counts_ret[i] = folded[i]
    area = m.areas
    while area != NULL:
        add_pcp_events(&area.pcp[index], counts_ret)
        area = area.next
    spin_unlock(&m.areas_lock)


cdef void sum_vm_events(machine* m, uint64_t* events_ret) noexcept nogil:
    cdef cpu_area* area
    cdef int i
    spin_lock(&m.areas_lock)
    for i in range(NR_VM_EVENT_ITEMS):
        events_ret[i] = m.events[i]
    area = m.areas
    while area != NULL:
        for i in range(NR_VM_EVENT_ITEMS):
            events_ret[i] += area.events[i]
        area = area.next
    spin_unlock(&m.areas_lock)


cdef void sum_pcp_stats(machine* m, int index, pcp_stat* stats_ret) noexcept nogil:
    cdef cpu_area* area
    cdef pcp_stat* of_cpu
    spin_lock(&m.areas_lock)
    area = m.areas
    while area != NULL:
        of_cpu = stats_ret + (1 + area.cpu if 0 <= area.cpu < m.nr_cpu_ids else 0)
        of_cpu.threads += 1
        of_cpu.count += area.pcp[index].count
        of_cpu.high = max(of_cpu.high, area.pcp[index].high)
        area = area.next
    spin_unlock(&m.areas_lock)


cdef void count_frames(const machine* m, int nid, frame_stat* ret) noexcept nogil:
    cdef const node* n = m.nodes + nid
    cdef uint64_t pfn = n.start_pfn
    cdef uint64_t end = n.start_pfn + n.spanned_pages
    cdef uint64_t pages
    cdef const page* p
    cdef page_kind kind
    ret.anon = ret.anon_huge = 0
    ret.shmem = ret.file = ret.dirty = ret.mapped = ret.mlocked = ret.mlocked_file = 0
    ret.active = ret.active_file = ret.table = ret.slab_reclaimable = 0
    ret.slab = slab_of(m).large_pages[nid] if m.slab != NULL else 0
    while pfn < end:
        p = pfn_to_page(m, pfn)
        kind.word = p.kind.word
        pages = 1
        # Read without the zone's lock: the order may be of the block's next life.
        if kind.h.state in (PAGE_BUDDY, PAGE_ALLOCATED) and kind.h.order <= MAX_PAGE_ORDER:
            pages = <uint64_t>1 << kind.h.order
        if kind.h.state == PAGE_ALLOCATED:
            if p.flags & (1 << PG_anon) and p.counts.c.mapcount >= 0:
                ret.anon += pages
                ret.active += p.flags >> PG_active & 1
                if p.private != 0:      # huge entries that begin with it
                    ret.anon_huge += PAGEBLOCK_NR_PAGES
                ret.mlocked += p.flags >> PG_mlocked & 1
            elif p.flags & (1 << PG_swapbacked):
                ret.shmem += pages
                ret.mapped += p.counts.c.mapcount >= 0
                ret.mlocked += p.flags >> PG_mlocked & 1
            elif p.flags & (1 << PG_file):
                ret.file += pages
                ret.active_file += p.flags >> PG_active & 1
                ret.dirty += p.flags >> PG_dirty & 1
                ret.mapped += p.counts.c.mapcount >= 0
                ret.mlocked_file += p.flags >> PG_mlocked & 1
            elif p.flags & (1 << PG_table):
                ret.table += pages
            elif p.flags & (1 << PG_slab) and kind.h.migratetype == MIGRATE_RECLAIMABLE:
                ret.slab_reclaimable += pages
            elif p.flags & (1 << PG_slab):
                ret.slab += pages
        pfn += pages
