# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Per-CPU page lists: refill, shrink, drain.  Compare mm/page_alloc.c (Linux 6.18):
# __rmqueue_pcplist(), nr_pcp_alloc(), nr_pcp_high(), free_pcppages_bulk().
# Callers are inside their area (cpu_area.busy), or have stolen it.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.buddy cimport (
    ALLOC_HIGHATOMIC, ALLOC_NON_BLOCK, ALLOC_OOM, free_one_page_locked, rmqueue_run_locked,
    zone_watermark_ok,
)
from realmem._kernel.lock_order cimport LOCK_AREA, check_spinlock
from realmem.compiler cimport fls, peek64, spin_lock, spin_unlock
from realmem.linux cimport (
    MADV_DONTFORK, MADV_DONTNEED, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE,
    PROT_READ, PROT_WRITE, madvise, mmap, munmap,
)
from realmem.types cimport (
    AREA_MAGAZINES, COUNTS_FREE, MACHINE_POISON, MAX_PAGE_ORDER, NO_REQUEST, NR_PAGE_ORDERS,
    NR_PCP_LISTS, NR_VM_EVENT_ITEMS, NR_VM_NUMA_EVENT_ITEMS, NUMA_HIT, NUMA_LOCAL, NUMA_OTHER,
    PAGE_ALLOC_COSTLY_ORDER, PAGE_PCP, PAGE_POISON, PAGE_SHIFT, PAGE_SIZE, PAGE_TAIL,
    PAGEBLOCK_ORDER, PCPF_PREV_FREE_HIGH_ORDER, PGFREE, PG_poisoned, PG_quicklist, WMARK_HIGH,
    ZONE_BELOW_HIGH, ZONE_MOVABLE, cpu_area, list_del, list_empty, list_head, list_init,
    lru_to_page, machine, page, page_to_pfn, page_zone, per_cpu_pages, pfn_to_page, quicklist,
    zone,
)


# Compare __rmqueue_pcplist().
cdef page* rmqueue_pcplist(cpu_area* area, zone* z, unsigned int order, int migratetype,
                           unsigned int alloc_flags) noexcept nogil:
    cdef per_cpu_pages* pcp = area.pcp + z.index
    cdef list_head* head = &pcp.lists[order_to_pindex(migratetype, order)]
    cdef page* p
    if list_empty(head):
        pcp.count += rmqueue_bulk(z, order, nr_pcp_alloc(pcp, z, order), head, migratetype,
                                  alloc_flags) << order
        if list_empty(head):
            return NULL
    p = lru_to_page(head.next)
    list_del(&p.lru)
    pcp.count -= 1 << order
    pcp.free_count >>= 1
    return p


# Move up to `count` blocks from the free areas to a per-CPU list, lowest address first;
# returns how many.
cdef int rmqueue_bulk(zone* z, unsigned int order, int count, list_head* head, int migratetype,
                      unsigned int alloc_flags) noexcept nogil:
    cdef uint32_t word = PAGE_PCP | order << 8 | <uint32_t>migratetype << 16
    cdef list_head* last = head.prev
    cdef int left = count
    cdef unsigned int run_order
    cdef page* p
    cdef page* end
    # These lists serve everybody: no page of the high-atomic reserve may come here.
    alloc_flags &= ~<unsigned int>(ALLOC_HIGHATOMIC | ALLOC_NON_BLOCK | ALLOC_OOM)
    spin_lock(&z.lock)
    while left > 0:
        p = rmqueue_run_locked(z, order, min(fls(left), MAX_PAGE_ORDER - order), migratetype,
                               alloc_flags, &run_order)
        if p == NULL:
            break
        left -= 1 << (run_order - order)
        end = p + (<uint64_t>1 << run_order)
        while p < end:
            p.kind.word = word
            p.lru.prev = last
            last.next = &p.lru
            last = &p.lru
            p += <uint64_t>1 << order
    last.next = head
    head.prev = last
    spin_unlock(&z.lock)
    return count - left


# Blocks to fetch at a refill: the zone's batch, doubled as long as a thread allocates
# without freeing, scaled down by order.  Compare nr_pcp_alloc().
cdef int nr_pcp_alloc(per_cpu_pages* pcp, const zone* z, unsigned int order) noexcept nogil:
    cdef int base = z.batch
    cdef int batch = base
    cdef int high
    cdef int most
    pcp.high = clamp(pcp.high, z.high_min, z.high_max)
    high = pcp.high
    if high < base:
        return 1                # lists are switched off
    if order == 0:
        batch = base << pcp.alloc_factor
    # A longer list would have spared this refill.
    if z.high_min != z.high_max and not z.flags & ZONE_BELOW_HIGH:
        high = min(high + batch, z.high_max)
        pcp.high = high
    if order == 0:
        most = max(high - pcp.count - base, base)
        if batch <= most and pcp.alloc_factor < PCP_BATCH_SCALE_MAX:
            pcp.alloc_factor += 1
        batch = min(batch, most)
    if batch > 1:
        batch = max(batch >> order, 2)
    return batch


# A list grew past its high mark, or the zone is short: give a batch back.
# Compare free_frozen_page_commit(), nr_pcp_high(), nr_pcp_free().
cdef void shrink_pcp(per_cpu_pages* pcp, zone* z, unsigned int order, int pindex) noexcept nogil:
    cdef int batch = z.batch
    cdef bint free_high = False
    cdef int high
    cdef int n
    # A run of high-order frees is a teardown: keep less.
    if order > 0 and order <= PAGE_ALLOC_COSTLY_ORDER:
        free_high = (pcp.free_count >= batch + z.high_min / 2
                     and pcp.flags & PCPF_PREV_FREE_HIGH_ORDER != 0
                     # Linux skips this where a CPU's share of cache is under 3 batches.
                     and pcp.count >= batch)
        pcp.flags |= PCPF_PREV_FREE_HIGH_ORDER
    elif pcp.flags & PCPF_PREV_FREE_HIGH_ORDER:
        pcp.flags &= ~<uint8_t>PCPF_PREV_FREE_HIGH_ORDER
    high = nr_pcp_high(pcp, z, batch, free_high)
    if pcp.count < high:
        return
    n = nr_pcp_free(pcp, z, batch, high, free_high)
    free_pcppages_bulk(z, pcp, n, pindex)
    if (z.flags & ZONE_BELOW_HIGH
            and zone_watermark_ok(z, 0, z.watermark[WMARK_HIGH], ZONE_MOVABLE, 0,
                                  peek64(&z.free_pages))):
        z.flags &= ~<uint32_t>ZONE_BELOW_HIGH


cdef int nr_pcp_high(per_cpu_pages* pcp, const zone* z, int batch,
                     bint free_high) noexcept nogil:
    cdef int high = clamp(pcp.high, z.high_min, z.high_max)
    if high == 0:
        return 0
    if free_high:
        pcp.high = max(high - (batch << PCP_BATCH_SCALE_MAX), z.high_min)
        return 0
    if z.high_min == z.high_max:
        return high
    if z.flags & ZONE_BELOW_HIGH:
        pcp.high = max(high - max(pcp.free_count, batch), z.high_min)
        return max(pcp.count, z.high_min)
    if pcp.count >= high:
        # Room for what is being freed, from the next time on.
        pcp.high = clamp(max(high, pcp.free_count + batch), z.high_min, z.high_max)
    return high


cdef int nr_pcp_free(per_cpu_pages* pcp, const zone* z, int batch, int high,
                     bint free_high) noexcept nogil:
    if free_high or high < batch:
        return pcp.count if free_high else 1
    return clamp(pcp.free_count, batch, max(high - batch, batch))


# Give up to `count` pages back, oldest first, from the lists in turn, list `pindex` first.
# Compare free_pcppages_bulk().
cdef void free_pcppages_bulk(zone* z, per_cpu_pages* pcp, int count, int pindex) noexcept nogil:
    cdef unsigned int order
    cdef uint64_t pfn
    cdef page* p
    count = min(count, pcp.count)
    spin_lock(&z.lock)
    while count > 0:
        while list_empty(&pcp.lists[pindex]):
            pindex = pindex + 1 if pindex + 1 < NR_PCP_LISTS else 0
        while count > 0 and not list_empty(&pcp.lists[pindex]):
            p = lru_to_page(pcp.lists[pindex].prev)
            order = p.kind.h.order
            pfn = page_to_pfn(z.machine, p)
            list_del(&p.lru)
            pcp.count -= 1 << order
            count -= 1 << order
            p.kind.word = PAGE_TAIL
            free_one_page_locked(z, p, pfn, order, z.pageblock[(pfn >> PAGEBLOCK_ORDER)
                                                               - z.pageblock_start], False)
        pindex = pindex + 1 if pindex + 1 < NR_PCP_LISTS else 0
    spin_unlock(&z.lock)


# Preconditions: nobody else is in this area.
cdef int64_t drain_area(machine* m, cpu_area* area) noexcept nogil:
    cdef int64_t moved = drain_quicklist(m, area, area.quick.nr_pages)
    cdef int i
    for i in range(m.nr_zones):
        if area.pcp[i].count > 0:
            moved += area.pcp[i].count
            free_pcppages_bulk(m.zones + i, area.pcp + i, area.pcp[i].count, 0)
    return moved


cdef int64_t drain_quicklist(machine* m, cpu_area* area, int64_t count) noexcept nogil:
    cdef quicklist* q = &area.quick
    cdef int64_t moved = 0
    cdef uint64_t* at
    cdef uint64_t pfn
    cdef page* p
    cdef zone* z
    while moved < count and q.page != NULL:
        at = q.page
        q.page = <uint64_t*>at[0]
        q.nr_pages -= 1
        moved += 1
        pfn = (<uint64_t>at - m.direct_map) >> PAGE_SHIFT
        p = pfn_to_page(m, pfn)
        z = page_zone(m, p)
        p.flags &= ~(<uint64_t>1 << PG_quicklist)
        if m.options & MACHINE_POISON:
            memset(at, PAGE_POISON, PAGE_SIZE)
            p.flags |= <uint64_t>1 << PG_poisoned
        p.counts.word = COUNTS_FREE
        p.kind.word = PAGE_TAIL
        spin_lock(&z.lock)
        free_one_page_locked(z, p, pfn, 0, z.pageblock[(pfn >> PAGEBLOCK_ORDER)
                                                       - z.pageblock_start], False)
        spin_unlock(&z.lock)
    area.events[PGFREE] += <uint64_t>moved
    return moved


cdef cpu_area* area_new(machine* m) noexcept nogil:
    cdef uint64_t size = (AREA_MAGAZINES + sizeof(cpu_area)
                          + m.nr_zones * sizeof(per_cpu_pages))
    cdef void* where = mmap(NULL, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef cpu_area* area
    if where == MAP_FAILED:
        return NULL
    madvise(where, size, MADV_DONTFORK)
    area = <cpu_area*>(<char*>where + AREA_MAGAZINES)
    area.bytes = size
    area.cpu = -1
    area.pcp = <per_cpu_pages*>(area + 1)
    area_reset(m, area)
    return area


cdef void area_reset(machine* m, cpu_area* area) noexcept nogil:
    cdef int i
    cdef int j
    check_spinlock(m, &area.lock, LOCK_AREA)
    area.atomic_depth = 0       # contexts end with their machine
    area.fast = NULL
    area.node_bytes = 0
    area.quick.page = NULL
    area.quick.nr_pages = 0
    area.nr_lru_pages = 0
    forget_memos(area)
    # Zeroes the magazines; the area does not begin with a page.
    madvise(<char*>area - AREA_MAGAZINES, AREA_MAGAZINES & ~<uint64_t>4095, MADV_DONTNEED)
    for i in range(NR_VM_EVENT_ITEMS):
        area.events[i] = 0
    for i in range(m.nr_zones):
        area.pcp[i].count = 0
        area.pcp[i].high = m.zones[i].high_min
        area.pcp[i].free_count = 0
        area.pcp[i].alloc_factor = 0
        area.pcp[i].flags = 0
        clear_pcp_events(&area.pcp[i])
        for j in range(NR_PCP_LISTS):
            list_init(&area.pcp[i].lists[j])


cdef void area_fold(machine* m, cpu_area* area) noexcept nogil:
    cdef int i
    cdef uint64_t* counts = m.zone_events
    for i in range(NR_VM_EVENT_ITEMS):
        m.events[i] += area.events[i]
        area.events[i] = 0
    for i in range(m.nr_zones):
        add_pcp_events(&area.pcp[i], counts)
        clear_pcp_events(&area.pcp[i])
        counts += 1 + NR_VM_NUMA_EVENT_ITEMS


cdef void add_pcp_events(const per_cpu_pages* pcp, uint64_t* counts_ret) noexcept nogil:
    cdef unsigned int order
    cdef int i
    counts_ret[0] += pcp.pgalloc
    for i in range(NR_VM_NUMA_EVENT_ITEMS):
        counts_ret[1 + i] += pcp.numa[i]
    for i in range(2):
        for order in range(NR_PAGE_ORDERS):
            counts_ret[0] += pcp.served[i][order] << order
            counts_ret[1 + NUMA_HIT] += pcp.served[i][order]
            counts_ret[1 + (NUMA_LOCAL if i else NUMA_OTHER)] += pcp.served[i][order]


cdef void clear_pcp_events(per_cpu_pages* pcp) noexcept nogil:
    pcp.pgalloc = 0
    memset(pcp.numa, 0, sizeof(pcp.numa))
    memset(pcp.served, 0, sizeof(pcp.served))


cdef void forget_allocs(cpu_area* area) noexcept nogil:
    cdef unsigned int order
    for order in range(NR_PAGE_ORDERS):
        area.allocs[order].request = NO_REQUEST


cdef void forget_memos(cpu_area* area) noexcept nogil:
    cdef unsigned int order
    forget_allocs(area)
    for order in range(NR_PAGE_ORDERS):
        area.frees[order].flags = ~<uint64_t>0


cdef void area_free(cpu_area* area) noexcept nogil:
    munmap(<char*>area - AREA_MAGAZINES, area.bytes)


cdef inline int clamp(int value, int low, int high) noexcept nogil:
    if value < low:
        return low
    return high if value > high else value
