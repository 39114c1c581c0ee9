# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Recount everything: each frame is in exactly one place, each counter is the sum of what
# it counts.  Stops at the first thing that is wrong.
from libc.stdint cimport int64_t, uint8_t, uint64_t

from realmem._kernel.buddy cimport settle_locked
from realmem._kernel.pcp cimport add_pcp_events, order_to_pindex
from realmem._kernel.percpu cimport freeze_cpu_areas, thaw_cpu_areas
from realmem._kernel.run cimport RUN_PAGES, run_bit
from realmem.compiler cimport spin_lock, spin_unlock
from realmem.types cimport (
    COUNTS_FREE, COUNTS_NEW, MIGRATE_HIGHATOMIC, MIGRATE_TYPES, NR_PAGE_ORDERS, NR_PCP_LISTS,
    NUMA_FOREIGN, NUMA_HIT, NUMA_LOCAL, NUMA_MISS, NUMA_OTHER, PAGE_ALLOCATED, PAGE_BAD,
    PAGE_BUDDY, PAGE_PCP, PAGE_RESERVED, PAGE_SHIFT, PAGE_SIZE, PAGE_TAIL, PAGE_ZONE_SHIFT,
    PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, PG_head, PG_quicklist, PG_tail, PGFREE, cpu_area,
    list_head, lru_to_page, machine, node, page, page_run, page_to_pfn, page_zone, pfn_to_page,
    zone,
)


cdef void validate_machine(machine* m, uint8_t* seen, finding* ret) noexcept nogil:
    cdef int64_t allocated = 0
    cdef int i
    ret.what = VALID
    ret.quick = 0
    stop(m)
    for i in range(m.nr_zones):
        if ret.what == VALID:
            validate_zone(m, m.zones + i, seen, &allocated, ret)
    if ret.what == VALID:
        validate_quicklists(m, ret)
    if ret.what == VALID:
        validate_events(m, allocated, ret)
    go_on(m)


cdef void balance_machine(machine* m, balance* ret) noexcept nogil:
    cdef uint64_t counts[7]
    cdef cpu_area* area
    cdef int i
    ret.managed = ret.free = ret.listed = 0
    stop(m)
    for i in range(m.nr_zones):
        ret.managed += m.zones[i].managed_pages
        ret.free += m.zones[i].free_pages
    area = m.areas
    while area != NULL:
        for i in range(m.nr_zones):
            ret.listed += area.pcp[i].count
        area = area.next
    ret.allocated = sum_events(m, counts)
    go_on(m)


# Nobody allocates or frees any more, and nothing is on its way.
cdef void stop(machine* m) noexcept nogil:
    cdef int i
    freeze_cpu_areas(m)
    for i in range(m.nr_zones):
        spin_lock(&m.zones[i].lock)
        settle_locked(m.zones + i)


cdef void go_on(machine* m) noexcept nogil:
    cdef int i
    for i in range(m.nr_zones):
        spin_unlock(&m.zones[i].lock)
    thaw_cpu_areas(m)


cdef void validate_zone(machine* m, zone* z, uint8_t* seen, int64_t* allocated,
                        finding* ret) noexcept nogil:
    cdef int64_t free = 0
    cdef int64_t listed = 0
    cdef int64_t held = 0
    cdef int64_t reserved = 0
    cdef int64_t high_atomic = 0
    cdef int order
    cdef int migratetype
    cdef cpu_area* area
    for order in range(NR_PAGE_ORDERS):
        for migratetype in range(MIGRATE_TYPES):
            if not validate_free_list(m, z, order, migratetype, seen, &free, ret):
                return
    if not validate_runs(m, z, seen, &free, ret):
        return
    if free != z.free_pages:
        report(ret, BAD_FREE_PAGES, z, 0, free, z.free_pages)
        return
    for order in range(NR_PAGE_ORDERS):
        high_atomic += z.free_area[order].nr_free[MIGRATE_HIGHATOMIC] << order
    if high_atomic != z.nr_free_highatomic:
        report(ret, BAD_HIGHATOMIC, z, 0, high_atomic, z.nr_free_highatomic)
        return
    area = m.areas
    while area != NULL:
        if not validate_pcp(m, z, area, seen, &listed, ret):
            return
        area = area.next
    if not validate_rest(m, z, seen, &held, &reserved, ret):
        return
    if free + listed + held != <int64_t>z.managed_pages:
        report(ret, BAD_MANAGED, z, 0, z.managed_pages, free + listed + held)
        return
    if not validate_highatomic(z, ret):
        return
    allocated[0] += held


# The blocks of one order and type: links, marks, alignment, buddies, count.
cdef bint validate_free_list(machine* m, zone* z, int order, int migratetype, uint8_t* seen,
                             int64_t* free, finding* ret) noexcept nogil:
    cdef list_head* head = &z.free_area[order].free_list[migratetype]
    cdef list_head* at = head.next
    cdef int64_t n = 0
    cdef uint64_t pfn
    cdef uint64_t buddy
    cdef page* p
    while at != head:
        p = lru_to_page(at)
        pfn = page_to_pfn(m, p)
        if not in_zone(z, pfn):
            return report(ret, BAD_ZONE, z, pfn, z.index, 0)
        if at.next.prev != at or at.prev.next != at:
            return report(ret, BAD_LINK, z, pfn, 0, 0)
        if not validate_head(m, z, p, pfn, PAGE_BUDDY, order, migratetype, seen, ret):
            return False
        if z.pageblock[(pfn >> PAGEBLOCK_ORDER) - z.pageblock_start] != migratetype:
            return report(ret, BAD_PAGEBLOCK, z, pfn, migratetype,
                          z.pageblock[(pfn >> PAGEBLOCK_ORDER) - z.pageblock_start])
        buddy = pfn ^ (<uint64_t>1 << order)
        if (order < NR_PAGE_ORDERS - 1 and in_zone(z, buddy)
                and pfn_to_page(m, buddy).kind.h.state == PAGE_BUDDY
                and pfn_to_page(m, buddy).kind.h.order == order
                and not (order >= PAGEBLOCK_ORDER and kept_apart(
                    migratetype, pfn_to_page(m, buddy).kind.h.migratetype))):
            return report(ret, UNMERGED, z, pfn, order, 0)
        n += 1
        free[0] += <int64_t>1 << order
        at = at.next
    if n != z.free_area[order].nr_free[migratetype]:
        return report(ret, BAD_NR_FREE, z, order, n, z.free_area[order].nr_free[migratetype])
    if (n > 0) != (z.area_mask[migratetype] >> order & 1):
        return report(ret, BAD_MASK, z, order, n > 0, z.area_mask[migratetype])
    return True


# What runs have left: free frames in no list, in the pageblock that says so.
cdef bint validate_runs(machine* m, zone* z, uint8_t* seen, int64_t* free,
                        finding* ret) noexcept nogil:
    cdef const page_run* run = z.runs
    cdef int64_t left
    cdef int64_t total = 0
    cdef unsigned int i
    cdef page* p
    while run != NULL:
        left = 0
        if (run.z != z or not in_zone(z, run.pfn) or run.pfn & (RUN_PAGES - 1)
                or z.run_at[(run.pfn >> PAGEBLOCK_ORDER) - z.pageblock_start] != run
                or (run.next.prev if run.next != NULL else z.last_run) != run):
            return report(ret, BAD_RUN, z, run.pfn, 0, run.unused)
        for i in range(RUN_PAGES):
            if run_bit(run.used, i):
                continue
            p = pfn_to_page(m, run.pfn + i)
            left += 1
            if p.kind.h.state != PAGE_TAIL:
                return report(ret, BAD_STATE, z, run.pfn + i, PAGE_TAIL, p.kind.h.state)
            if p.counts.word != COUNTS_FREE:
                return report(ret, BAD_REFCOUNT, z, run.pfn + i, 0, p.counts.c.refcount)
            if seen[run.pfn + i]:
                return report(ret, DOUBLY_LISTED, z, run.pfn + i, 0, 0)
            seen[run.pfn + i] = 1
        if left != run.unused:
            return report(ret, BAD_RUN, z, run.pfn, left, run.unused)
        total += left
        run = run.next
    if total != z.run_pages:
        return report(ret, BAD_RUN, z, 0, total, z.run_pages)
    free[0] += total
    return True


# Reserved pageblocks do not merge with others of another type.
cdef inline bint kept_apart(int one, int other) noexcept nogil:
    return one != other and (one >= MIGRATE_HIGHATOMIC or other >= MIGRATE_HIGHATOMIC)


cdef bint validate_pcp(machine* m, zone* z, cpu_area* area, uint8_t* seen, int64_t* listed,
                       finding* ret) noexcept nogil:
    cdef list_head* head
    cdef list_head* at
    cdef int64_t n = 0
    cdef int pindex
    cdef uint64_t pfn
    cdef page* p
    for pindex in range(NR_PCP_LISTS):
        head = &area.pcp[z.index].lists[pindex]
        at = head.next
        while at != head:
            p = lru_to_page(at)
            pfn = page_to_pfn(m, p)
            if not in_zone(z, pfn):
                return report(ret, BAD_ZONE, z, pfn, z.index, 0)
            if at.next.prev != at or at.prev.next != at:
                return report(ret, BAD_LINK, z, pfn, 0, 0)
            if p.kind.h.state != PAGE_PCP:
                return report(ret, BAD_STATE, z, pfn, PAGE_PCP, p.kind.h.state)
            if order_to_pindex(p.kind.h.migratetype, p.kind.h.order) != pindex:
                return report(ret, BAD_TYPE, z, pfn, pindex,
                              order_to_pindex(p.kind.h.migratetype, p.kind.h.order))
            if not validate_head(m, z, p, pfn, PAGE_PCP, p.kind.h.order,
                                 p.kind.h.migratetype, seen, ret):
                return False
            n += <int64_t>1 << p.kind.h.order
            at = at.next
    if n != area.pcp[z.index].count:
        return report(ret, BAD_PCP_COUNT, z, 0, n, area.pcp[z.index].count)
    listed[0] += n
    return True


# The first frame of a block, and that its frames are in no other place.
cdef bint validate_head(machine* m, zone* z, page* p, uint64_t pfn, int state, int order,
                        int migratetype, uint8_t* seen, finding* ret) noexcept nogil:
    cdef uint64_t i
    if p.kind.h.state != state:
        return report(ret, BAD_STATE, z, pfn, state, p.kind.h.state)
    if p.kind.h.order != order:
        return report(ret, BAD_ORDER, z, pfn, order, p.kind.h.order)
    if p.kind.h.migratetype != migratetype:
        return report(ret, BAD_TYPE, z, pfn, migratetype, p.kind.h.migratetype)
    if pfn & ((<uint64_t>1 << order) - 1):
        return report(ret, BAD_ALIGNMENT, z, pfn, order, 0)
    if not in_zone(z, pfn + (<uint64_t>1 << order) - 1):
        return report(ret, BAD_ZONE, z, pfn, z.index, 0)
    if state != PAGE_ALLOCATED and p.counts.word != COUNTS_FREE:
        return report(ret, BAD_REFCOUNT, z, pfn, 0, p.counts.c.refcount)
    for i in range(<uint64_t>1 << order):
        if seen[pfn + i]:
            return report(ret, DOUBLY_LISTED, z, pfn + i, 0, 0)
        seen[pfn + i] = 1
        if i and (p + i).kind.h.state != PAGE_TAIL:
            return report(ret, BAD_STATE, z, pfn + i, PAGE_TAIL, (p + i).kind.h.state)
        if (p + i).flags >> PAGE_ZONE_SHIFT != <uint64_t>z.index:
            return report(ret, BAD_ZONE, z, pfn + i, z.index, (p + i).flags >> PAGE_ZONE_SHIFT)
    return True


# Every frame that no list holds is allocated, reserved or set aside; none is lost.
cdef bint validate_rest(machine* m, zone* z, uint8_t* seen, int64_t* held, int64_t* reserved,
                        finding* ret) noexcept nogil:
    cdef node* n = &m.nodes[z.nid]
    cdef uint64_t pfn = z.start_pfn
    cdef uint64_t step
    cdef page* p
    cdef int state
    while pfn < z.start_pfn + z.spanned_pages:
        if seen[pfn]:
            pfn += 1
            continue
        p = pfn_to_page(m, pfn)
        state = p.kind.h.state
        step = 1
        if state == PAGE_RESERVED:
            if pfn - n.memmap_pfn >= n.memmap_pages:
                return report(ret, BAD_RESERVED, z, pfn, 0, 0)
            reserved[0] += 1
        elif state == PAGE_ALLOCATED or state == PAGE_BAD:
            step = <uint64_t>1 << p.kind.h.order
            if state == PAGE_ALLOCATED and p.counts.c.refcount <= 0:
                return report(ret, BAD_REFCOUNT, z, pfn, 1, p.counts.c.refcount)
            if not validate_head(m, z, p, pfn, state if state == PAGE_BAD else PAGE_ALLOCATED,
                                 p.kind.h.order, p.kind.h.migratetype, seen, ret):
                return False
            if not validate_compound(z, p, pfn, ret):
                return False
            held[0] += <int64_t>step
            ret.quick += p.flags >> PG_quicklist & 1
        else:
            return report(ret, LOST_FRAME, z, pfn, 0, state)
        pfn += step
    return True


cdef bint validate_compound(zone* z, page* head, uint64_t pfn, finding* ret) noexcept nogil:
    cdef uint64_t i
    cdef bint compound = head.flags >> PG_head & 1
    for i in range(1, <uint64_t>1 << head.kind.h.order):
        if ((head + i).flags >> PG_tail & 1) != compound:
            return report(ret, BAD_COMPOUND, z, pfn + i, compound, not compound)
        if compound and (head + i).index != <uint64_t>head:
            return report(ret, BAD_COMPOUND, z, pfn + i, <int64_t>pfn, (head + i).index)
    return True


cdef bint validate_highatomic(zone* z, finding* ret) noexcept nogil:
    cdef uint64_t i
    cdef int64_t n = 0
    if z.spanned_pages == 0:
        return True
    for i in range(z.start_pfn >> PAGEBLOCK_ORDER,
                   ((z.start_pfn + z.spanned_pages - 1) >> PAGEBLOCK_ORDER) + 1):
        if z.pageblock[i - z.pageblock_start] == MIGRATE_HIGHATOMIC:
            n += PAGEBLOCK_NR_PAGES
    if n != z.nr_reserved_highatomic:
        return report(ret, BAD_HIGHATOMIC, z, 0, n, z.nr_reserved_highatomic)
    return True


# Each frame of a quicklist says so, and each frame that says so is on one; all are empty.
cdef void validate_quicklists(machine* m, finding* ret) noexcept nogil:
    cdef cpu_area* area = m.areas
    cdef int64_t flagged = ret.quick
    cdef int64_t listed
    cdef int64_t total = 0
    cdef uint64_t* at
    cdef uint64_t pfn
    cdef page* p
    cdef zone* z
    while area != NULL:
        at = area.quick.page
        listed = 0
        while at != NULL and listed < area.quick.nr_pages:
            pfn = (<uint64_t>at - m.direct_map) >> PAGE_SHIFT
            p = pfn_to_page(m, pfn)
            z = page_zone(m, p)
            if (not p.flags >> PG_quicklist & 1 or p.kind.h.state != PAGE_ALLOCATED
                    or p.counts.word != COUNTS_NEW or z.nid != area.quick.nid):
                report(ret, BAD_QUICKPAGE, z, pfn, 0, 0)
                return
            if not is_empty(at):
                report(ret, BAD_TABLE, z, pfn, 0, 0)
                return
            listed += 1
            at = <uint64_t*>at[0]
        if at != NULL or listed != area.quick.nr_pages:
            report(ret, BAD_QUICKLIST, m.zones, 0, listed, area.quick.nr_pages)
            return
        total += listed
        area = area.next
    if total != flagged:
        report(ret, BAD_QUICKLIST, m.zones, 0, total, flagged)


# Zero all over but for the first word, which links it.
cdef inline bint is_empty(const uint64_t* at) noexcept nogil:
    cdef unsigned int i
    for i in range(1, PAGE_SIZE >> 3):
        if at[i] != 0:
            return False
    return True


# Counters: what was allocated and not freed is what is allocated; every allocation was
# local or other, hit or miss; every miss was foreign somewhere.
cdef void validate_events(machine* m, int64_t allocated, finding* ret) noexcept nogil:
    cdef uint64_t counts[7]
    cdef int64_t numa[6]
    cdef int64_t counted = sum_events(m, counts)
    cdef int j
    for j in range(6):
        numa[j] = counts[1 + j]
    if counted != allocated:
        report(ret, BAD_EVENTS, m.zones, 0, allocated, counted)
    elif numa[NUMA_HIT] + numa[NUMA_MISS] != numa[NUMA_LOCAL] + numa[NUMA_OTHER]:
        report(ret, BAD_NUMA, m.zones, 0, numa[NUMA_HIT] + numa[NUMA_MISS],
               numa[NUMA_LOCAL] + numa[NUMA_OTHER])
    elif numa[NUMA_MISS] != numa[NUMA_FOREIGN]:
        report(ret, BAD_NUMA, m.zones, 0, numa[NUMA_MISS], numa[NUMA_FOREIGN])


# Sum what zones' events are, those of threads included: pgalloc, then the NUMA events.
# Returns: pgalloc - pgfree.
cdef int64_t sum_events(machine* m, uint64_t* counts_ret) noexcept nogil:
    cdef int64_t freed = m.events[PGFREE]
    cdef cpu_area* area = m.areas
    cdef int i, j
    for j in range(7):
        counts_ret[j] = 0
    for i in range(m.nr_zones):
        for j in range(7):
            counts_ret[j] += m.zone_events[i * 7 + j]
    while area != NULL:
        freed += area.events[PGFREE]
        for i in range(m.nr_zones):
            add_pcp_events(&area.pcp[i], counts_ret)
        area = area.next
    return <int64_t>counts_ret[0] - freed


cdef inline bint in_zone(const zone* z, uint64_t pfn) noexcept nogil:
    return pfn - z.start_pfn < z.spanned_pages


cdef bint report(finding* ret, int what, zone* z, uint64_t pfn, int64_t expected,
                 int64_t found) noexcept nogil:
    ret.what = what
    ret.index = z.index
    ret.pfn = pfn
    ret.expected = expected
    ret.found = found
    return False
