# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The page allocator: zonelists, watermarks, per-CPU lists, freeing.
# Compare mm/page_alloc.c (Linux 6.18): get_page_from_freelist(), rmqueue_pcplist(),
# __alloc_pages_slowpath(), free_frozen_pages().
#
# The fast path of both directions holds no lock: it works on the calling thread's own
# lists (types.pxd: cpu_area).  Everything that leaves the fast path is a separate
# function, so that the fast path stays small.
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.buddy cimport (
    ALLOC_HIGHATOMIC, ALLOC_KSWAPD, ALLOC_MIN_RESERVE, ALLOC_NO_WATERMARKS, ALLOC_NOFRAGMENT,
    ALLOC_NON_BLOCK, ALLOC_OOM, ALLOC_RESERVES, ALLOC_WMARK_LOW, ALLOC_WMARK_MASK,
    ALLOC_WMARK_MIN, free_one_page_locked, reserve_highatomic_pageblock, rmqueue_locked,
    unreserve_highatomic_pageblock, zone_watermark_ok,
)
from realmem._kernel.pcp cimport (
    PCP_BATCH_SCALE_MAX, area_fold, area_free, area_new, area_reset, drain_area,
    order_to_pindex, pcp_allowed_order, rmqueue_pcplist, shrink_pcp,
)
from realmem.compiler cimport (
    SEQ_CST, atomic64_add_return, atomic_add_return, atomic_xchg, barrier, likely, load_int,
    peek64, peek_int, poke_int, spin_lock, spin_unlock, spinlock, store_int, this_cpu_id,
    unlikely,
)
from realmem.linux cimport (
    MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, membarrier,
    sched_yield,
)
from realmem.types cimport (
    ALLOCSTALL, COUNTS_FREE, COUNTS_NEW, GFP_COMP, GFP_DIRECT_RECLAIM, GFP_HIGH, GFP_KSWAPD_RECLAIM,
    GFP_MEMALLOC, GFP_NOFAIL, GFP_NOMEMALLOC, GFP_NORETRY, GFP_RETRY_MAYFAIL, GFP_THISNODE,
    GFP_ZERO, HPAGE_PMD_ORDER, KSWAPD_WAKE, MACHINE_POISON, MAX_NR_ZONES, MIGRATE_HIGHATOMIC,
    MIGRATE_ISOLATE, MIGRATE_MOVABLE, MIGRATE_PCPTYPES, NR_LOWORDER_PCP_LISTS, NR_PCP_LISTS,
    NUMA_FOREIGN, NUMA_HIT, NUMA_INTERLEAVE_HIT, NUMA_LOCAL, NUMA_MISS, NUMA_OTHER,
    PAGE_ALLOC_COSTLY_ORDER, PAGE_ALLOCATED, PAGE_BAD, PAGE_BUDDY, PAGE_FLAGS_CHECK_AT_FREE,
    PAGE_PCP, PAGE_RESERVED, PAGE_SIZE, PAGE_TAIL, PAGE_ZONE_SHIFT, PAGEBLOCK_ORDER, PGFREE,
    PCPF_PREV_FREE_HIGH_ORDER, PG_head, PG_poisoned, PG_tail, WMARK_HIGH, WMARK_LOW,
    ZONE_BELOW_HIGH, ZONE_MOVABLE, ZONE_NORMAL, cpu_area, list_add, list_add_tail, list_del,
    list_empty, list_head, lru_to_page, machine, page, page_address, page_to_pfn, page_zone,
    per_cpu_pages, pfn_to_page, zone,
)

cdef enum:
    PAGE_POISON = 0xAA          # include/linux/poison.h
    MAX_RECLAIM_RETRIES = 16
    # gfp & 15 (DMA HIGHMEM DMA32 MOVABLE) -> highest zone, two bits each; and the
    # combinations that name no zone (include/linux/gfp.h:GFP_ZONE_TABLE).
    GFP_ZONE_BAD = 0xE8E8


# ---- allocation -------------------------------------------------------------

cdef page* alloc_pages_node(machine* m, int nid, uint32_t gfp,
                            unsigned int order) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    cdef zone** zonelist
    cdef int highest
    cdef page* p
    if unlikely(this_cpu_id() != area.cpu):
        area_set_cpu(area)
    if nid < 0:
        nid = area.nid
    highest = gfp_zone(gfp)
    zonelist = m.zonelists[(nid * 2 + ((gfp & GFP_THISNODE) != 0)) * MAX_NR_ZONES + highest]
    p = rmqueue_fast(m, area, zonelist[0], highest, gfp, order)
    if unlikely(p == NULL):
        p = alloc_pages_general(m, area, zonelist, highest, gfp, order)
    area_exit(area)
    return p


# The common case: the preferred zone is well above its high mark and this thread has a
# block of the order (or, for orders that per-CPU lists do not keep, the lock is free to
# take).  NULL means only: look further.
cdef inline page* rmqueue_fast(machine* m, cpu_area* area, zone* z, int highest, uint32_t gfp,
                               unsigned int order) noexcept nogil:
    cdef per_cpu_pages* pcp
    cdef list_head* head
    cdef int migratetype = gfp_migratetype(gfp)
    cdef page* p
    if unlikely(z == NULL) or not above_high_mark(z, highest, order):
        return NULL
    pcp = area.pcp + z.index
    if likely(pcp_allowed_order(order)):
        head = &pcp.lists[order_to_pindex(migratetype, order)]
        if unlikely(list_empty(head)):
            return NULL
        p = lru_to_page(head.next)
        list_del(&p.lru)
        pcp.count -= 1 << order
        pcp.free_count >>= 1
    else:
        spin_lock(&z.lock)
        p = rmqueue_locked(z, order, migratetype, ALLOC_WMARK_LOW)
        spin_unlock(&z.lock)
        if unlikely(p == NULL):
            return NULL
    zone_statistics(area, z, z, 1)
    pcp.pgalloc += <uint64_t>1 << order
    if unlikely(not prep_new_page(m, p, order, gfp, migratetype)):
        return NULL
    return p


# Free pages and, for an order, free blocks enough that no other test is needed.
cdef inline bint above_high_mark(zone* z, int highest, unsigned int order) noexcept nogil:
    if unlikely(peek64(&z.free_pages) - z.nr_reserved_highatomic
                < <int64_t>(z.watermark[WMARK_HIGH] + z.lowmem_reserve[highest])
                + (<int64_t>1 << order)):
        return False
    if order == 0:
        return True
    return (z.area_mask[0] | z.area_mask[1] | z.area_mask[2]) >> order != 0


# Everything else: other zones and nodes, refills, watermarks, reclaim.
cdef page* alloc_pages_general(machine* m, cpu_area* area, zone** zonelist, int highest,
                               uint32_t gfp, unsigned int order) noexcept nogil:
    cdef page* p
    if zonelist[0] == NULL:
        return NULL
    p = get_page_from_freelist(m, area, zonelist, highest, gfp, order,
                               ALLOC_WMARK_LOW | nofragment_flag(m, zonelist))
    if p == NULL:
        p = alloc_pages_slowpath(m, area, zonelist, highest, gfp, order)
    return p


# Walk the zonelist; NULL when no zone may give a block.  Compare get_page_from_freelist().
cdef page* get_page_from_freelist(machine* m, cpu_area* area, zone** zonelist, int highest,
                                  uint32_t gfp, unsigned int order,
                                  unsigned int alloc_flags) noexcept nogil:
    cdef zone* z
    cdef zone* preferred = zonelist[0]
    cdef bint no_fallback = (alloc_flags & ALLOC_NOFRAGMENT) != 0
    cdef int migratetype = gfp_migratetype(gfp)
    cdef int i
    cdef page* p
    while True:
        i = 0
        while zonelist[i] != NULL:
            z = zonelist[i]
            i += 1
            # Rather mix pageblocks here than go to another node for a clean one.
            if no_fallback and z.nid != preferred.nid:
                break
            if not zone_allows(z, order, highest, alloc_flags):
                continue
            while True:
                p = rmqueue(m, area, z, order, migratetype, alloc_flags)
                if p == NULL:
                    break
                zone_statistics(area, preferred, z, 1)
                area.pcp[z.index].pgalloc += <uint64_t>1 << order
                if likely(prep_new_page(m, p, order, gfp, migratetype)):
                    if unlikely(alloc_flags & ALLOC_HIGHATOMIC) and order > 0:
                        reserve_highatomic_pageblock(z, p, order)
                    return p
        if not no_fallback:
            return NULL
        no_fallback = False
        alloc_flags &= ~<unsigned int>ALLOC_NOFRAGMENT


# Whether z may serve the request at the mark that alloc_flags name.  Also notes that the
# zone went under its high mark, which makes its per-CPU lists shrink.
cdef inline bint zone_allows(zone* z, unsigned int order, int highest,
                             unsigned int alloc_flags) noexcept nogil:
    if not z.flags & ZONE_BELOW_HIGH:
        if zone_watermark_ok(z, order, z.watermark[WMARK_HIGH], highest, alloc_flags,
                             peek64(&z.free_pages)):
            return True
        z.flags |= ZONE_BELOW_HIGH
    if alloc_flags & ALLOC_NO_WATERMARKS:
        return True
    return zone_watermark_ok(z, order, z.watermark[alloc_flags & ALLOC_WMARK_MASK], highest,
                             alloc_flags, peek64(&z.free_pages))


# On a node with DMA32 below Normal, keep Normal's pageblocks clean as long as another
# zone can serve.  Compare alloc_flags_nofragment().
cdef inline unsigned int nofragment_flag(const machine* m, zone** zonelist) noexcept nogil:
    cdef zone* z = zonelist[0]
    if z.kind != ZONE_NORMAL or (z - 1).managed_pages == 0:
        return 0
    return ALLOC_NOFRAGMENT


# One block from z, by the per-CPU lists where they keep the order.  Compare rmqueue().
cdef page* rmqueue(machine* m, cpu_area* area, zone* z, unsigned int order, int migratetype,
                   unsigned int alloc_flags) noexcept nogil:
    cdef page* p = NULL
    if pcp_allowed_order(order):
        p = rmqueue_pcplist(area, z, order, migratetype, alloc_flags)
    if p == NULL:
        spin_lock(&z.lock)
        p = rmqueue_locked(z, order, migratetype, alloc_flags)
        spin_unlock(&z.lock)
    return p


# Make a free block the caller's.  False: the frame was found corrupted and is set aside.
cdef inline bint prep_new_page(machine* m, page* p, unsigned int order, uint32_t gfp,
                               int migratetype) noexcept nogil:
    if unlikely(p.counts.word != COUNTS_FREE or p.mapping != NULL
                or p.flags & (PAGE_FLAGS_CHECK_AT_FREE | 1 << PG_poisoned)):
        if not check_new_page(m, p, order):
            return False
    p.counts.word = COUNTS_NEW
    p.kind.word = PAGE_ALLOCATED | order << 8 | <uint32_t>migratetype << 16
    if unlikely(gfp & (GFP_ZERO | GFP_COMP)):
        if gfp & GFP_ZERO:
            memset(<void*>page_address(m, p), 0, <uint64_t>PAGE_SIZE << order)
        if gfp & GFP_COMP and order > 0:
            prep_compound_page(p, order)
    return True


# A page about to be given out looks wrong, or carries poison that must be whole.
# Compare check_new_page(), __kernel_unpoison_pages().
cdef bint check_new_page(machine* m, page* p, unsigned int order) noexcept nogil:
    cdef uint64_t i
    cdef uint64_t* word
    cdef page* q
    cdef bint good = (p.counts.word == COUNTS_FREE and p.mapping == NULL
                      and not p.flags & PAGE_FLAGS_CHECK_AT_FREE)
    for i in range(<uint64_t>1 << order):
        q = p + i
        if not q.flags & (<uint64_t>1 << PG_poisoned):
            continue
        q.flags &= ~(<uint64_t>1 << PG_poisoned)
        word = <uint64_t*>page_address(m, q)
        if good and not is_poison(word):
            good = False
            m.bad_pfn = page_to_pfn(m, q)
    if good:
        return True
    if p.counts.word != COUNTS_FREE or p.mapping != NULL or p.flags & PAGE_FLAGS_CHECK_AT_FREE:
        m.bad_pfn = page_to_pfn(m, p)
    p.kind.word = PAGE_BAD | order << 8
    atomic64_add_return(&m.nr_bad_pages, <int64_t>1 << order, SEQ_CST)
    return False


cdef inline bint is_poison(const uint64_t* word) noexcept nogil:
    cdef unsigned int i
    for i in range(PAGE_SIZE >> 3):
        if word[i] != <uint64_t>0xAAAAAAAAAAAAAAAA:
            return False
    return True


cdef void prep_compound_page(page* head, unsigned int order) noexcept nogil:
    cdef uint64_t i
    head.flags |= <uint64_t>1 << PG_head
    for i in range(1, <uint64_t>1 << order):
        (head + i).flags |= <uint64_t>1 << PG_tail
        (head + i).index = <uint64_t>head


# Compare zone_statistics().
cdef inline void zone_statistics(cpu_area* area, zone* preferred, zone* z,
                                 uint64_t n) noexcept nogil:
    cdef uint64_t* stat = &area.pcp[z.index].numa[0]
    if likely(z.nid == preferred.nid):
        stat[NUMA_HIT] += n
    else:
        stat[NUMA_MISS] += n
        area.pcp[preferred.index].numa[NUMA_FOREIGN] += n
    if likely(z.nid == area.nid):
        stat[NUMA_LOCAL] += n
    else:
        stat[NUMA_OTHER] += n


# ---- the slow path ----------------------------------------------------------

# Nothing above the low mark: go down to the min mark or below it as gfp allows, then
# reclaim, then give up.  Compare __alloc_pages_slowpath().
cdef page* alloc_pages_slowpath(machine* m, cpu_area* area, zone** zonelist, int highest,
                                uint32_t gfp, unsigned int order) noexcept nogil:
    cdef unsigned int alloc_flags = gfp_to_alloc_flags(gfp, order)
    cdef int turns = 0
    cdef int64_t progress
    cdef page* p
    if gfp & GFP_KSWAPD_RECLAIM:
        area.events[KSWAPD_WAKE] += 1
        alloc_flags |= nofragment_flag(m, zonelist)
    p = get_page_from_freelist(m, area, zonelist, highest, gfp, order, alloc_flags)
    if p != NULL:
        return p
    if gfp & GFP_MEMALLOC and not gfp & GFP_NOMEMALLOC:
        alloc_flags = ALLOC_NO_WATERMARKS | (alloc_flags & ALLOC_KSWAPD)
        p = get_page_from_freelist(m, area, zonelist, highest, gfp, order, alloc_flags)
        if p != NULL:
            return p
    if not gfp & GFP_DIRECT_RECLAIM:
        return NULL
    while True:
        area.events[ALLOCSTALL + zonelist[0].kind] += 1
        area_exit(area)
        progress = 0
        if m.reclaim != NULL:
            progress = m.reclaim(m, zonelist[0], gfp, order)
        drain_all_pages(m)
        area = area_enter(m)
        p = get_page_from_freelist(m, area, zonelist, highest, gfp, order, alloc_flags)
        if p != NULL:
            return p
        if unreserve_highatomic(zonelist, turns > 0):
            progress += 1
        turns = 0 if progress else turns + 1
        if gfp & GFP_NORETRY or order > PAGE_ALLOC_COSTLY_ORDER and not gfp & GFP_RETRY_MAYFAIL:
            break
        if turns > 0 and (m.reclaim == NULL or turns > MAX_RECLAIM_RETRIES):
            break
    if gfp & GFP_NOFAIL:
        # The last resort before failing all the same: below every mark.
        return get_page_from_freelist(m, area, zonelist, highest, gfp, order,
                                      ALLOC_NO_WATERMARKS)
    return NULL


# Compare gfp_to_alloc_flags().
cdef inline unsigned int gfp_to_alloc_flags(uint32_t gfp, unsigned int order) noexcept nogil:
    cdef unsigned int flags = ALLOC_WMARK_MIN
    flags |= gfp & (GFP_HIGH | GFP_KSWAPD_RECLAIM)      # the same bits
    if not gfp & GFP_DIRECT_RECLAIM and not gfp & GFP_NOMEMALLOC:
        flags |= ALLOC_NON_BLOCK
        if order > 0 and flags & ALLOC_MIN_RESERVE:
            flags |= ALLOC_HIGHATOMIC
    return flags


cdef bint unreserve_highatomic(zone** zonelist, bint force) noexcept nogil:
    cdef int i = 0
    while zonelist[i] != NULL:
        if (zonelist[i].nr_reserved_highatomic > 0
                and unreserve_highatomic_pageblock(zonelist[i], force)):
            return True
        i += 1
    return False


# ---- other ways to allocate -------------------------------------------------

cdef page* alloc_page_interleave(machine* m, int nid, uint32_t gfp,
                                 unsigned int order) noexcept nogil:
    cdef page* p = alloc_pages_node(m, nid, gfp, order)
    cdef cpu_area* area
    if p != NULL and page_zone(m, p).nid == nid:
        area = area_enter(m)
        area.pcp[page_zone(m, p).index].numa[NUMA_INTERLEAVE_HIT] += 1
        area_exit(area)
    return p


cdef uint64_t alloc_pages_bulk(machine* m, int nid, uint32_t gfp, uint64_t n,
                               uint64_t* pfns_ret) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    cdef zone** zonelist
    cdef int highest = gfp_zone(gfp)
    cdef uint64_t i = 0
    cdef page* p
    if unlikely(this_cpu_id() != area.cpu):
        area_set_cpu(area)
    if nid < 0:
        nid = area.nid
    zonelist = m.zonelists[(nid * 2 + ((gfp & GFP_THISNODE) != 0)) * MAX_NR_ZONES + highest]
    while i < n:
        p = rmqueue_fast(m, area, zonelist[0], highest, gfp, 0)
        if unlikely(p == NULL):
            p = alloc_pages_general(m, area, zonelist, highest, gfp, 0)
            if p == NULL:
                break
        pfns_ret[i] = page_to_pfn(m, p)
        i += 1
    area_exit(area)
    return i


cdef void split_page(machine* m, page* p, unsigned int order) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    cdef uint64_t i
    for i in range(<uint64_t>1 << order):
        (p + i).counts.word = COUNTS_NEW
        (p + i).kind.word = (p.kind.word & 0xFF0000) | PAGE_ALLOCATED
    area_exit(area)


# ---- freeing ----------------------------------------------------------------

cdef int free_check(const machine* m, uint64_t pfn, unsigned int order) noexcept nogil:
    cdef const page* p
    cdef uint32_t state
    if unlikely(not pfn_valid(m, pfn)):
        return FREE_BAD_PFN
    p = pfn_to_page(m, pfn)
    state = p.kind.h.state
    if likely(state == PAGE_ALLOCATED):
        if unlikely(p.kind.h.order != order):
            return FREE_WRONG_ORDER
        if unlikely(p.counts.c.refcount == 1 and (p.counts.c.mapcount != -1
                    or p.flags & PAGE_FLAGS_CHECK_AT_FREE)):
            return FREE_MAPPED
        return FREE_OK
    if state == PAGE_RESERVED or state == PAGE_BAD:
        return FREE_RESERVED
    if state == PAGE_BUDDY or state == PAGE_PCP:
        return FREE_ALREADY
    return FREE_ALREADY if in_free_block(m, pfn) else FREE_TAIL


cdef inline bint pfn_valid(const machine* m, uint64_t pfn) noexcept nogil:
    cdef int i
    for i in range(m.nr_nodes):
        if pfn - m.nodes[i].start_pfn < m.nodes[i].present_pages:
            return True
    return False


# Whether the block that holds this inner frame is a free one.
cdef bint in_free_block(const machine* m, uint64_t pfn) noexcept nogil:
    cdef unsigned int order
    cdef const page* head
    for order in range(1, 11):
        if not pfn_valid(m, pfn & ~((<uint64_t>1 << order) - 1)):
            return False
        head = pfn_to_page(m, pfn & ~((<uint64_t>1 << order) - 1))
        if head.kind.h.state != PAGE_TAIL:
            return head.kind.h.order >= order and head.kind.h.state in (PAGE_BUDDY, PAGE_PCP)
    return False


# The reference goes inside the area: a recount meanwhile sees the block here or there, never
# allocated without a reference.
cdef void free_pages(machine* m, page* p, unsigned int order) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    cdef bint compound = (p.flags & (<uint64_t>1 << PG_head)) != 0
    cdef page* tail
    if likely(put_page_testzero(p)):
        free_to_area(m, area, p, order)
    elif order > 0 and not compound:
        # Others hold the first page only: everything behind it goes now.
        p.kind.word = PAGE_ALLOCATED | (p.kind.word & 0xFF0000)
        while order > 0:
            order -= 1
            tail = p + (<uint64_t>1 << order)
            tail.kind.word = PAGE_ALLOCATED | order << 8 | (p.kind.word & 0xFF0000)
            free_to_area(m, area, tail, order)
    area_exit(area)


cdef void free_pages_bulk(machine* m, const uint64_t* pfns, uint64_t n) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    cdef uint64_t i
    cdef page* p
    for i in range(n):
        p = pfn_to_page(m, pfns[i])
        if likely(put_page_testzero(p)):
            free_to_area(m, area, p, 0)
    area_exit(area)


cdef void get_page(page* p) noexcept nogil:
    atomic_add_return(&p.counts.c.refcount, 1, SEQ_CST)


cdef void put_page(machine* m, page* p) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    if put_page_testzero(p):
        free_to_area(m, area, p, p.kind.h.order)
    area_exit(area)


# Nobody can gain a first reference to a page that has only ours, so one reference and no
# mapping needs no atomic operation.
cdef inline bint put_page_testzero(page* p) noexcept nogil:
    if likely(p.counts.word == COUNTS_NEW):
        p.counts.word = COUNTS_FREE
        return True
    return atomic_add_return(&p.counts.c.refcount, -1, SEQ_CST) == 0


# Free a block that nobody refers to any more.  Compare free_frozen_pages().
cdef inline void free_to_area(machine* m, cpu_area* area, page* p,
                              unsigned int order) noexcept nogil:
    cdef zone* z = page_zone(m, p)
    cdef per_cpu_pages* pcp = area.pcp + z.index
    cdef int migratetype = z.pageblock[(page_to_pfn(m, p) >> PAGEBLOCK_ORDER)
                                       - z.pageblock_start]
    if unlikely(p.flags & (<uint64_t>1 << PG_head) or m.options & MACHINE_POISON):
        free_prepare_slow(m, p, order)
    p.flags &= <uint64_t>0xFFFF << PAGE_ZONE_SHIFT | <uint64_t>1 << PG_poisoned
    p.mapping = NULL
    area.events[PGFREE] += <uint64_t>1 << order
    if unlikely(not pcp_allowed_order(order) or migratetype == MIGRATE_ISOLATE):
        free_to_zone(z, p, page_to_pfn(m, p), order)
        return
    if unlikely(migratetype >= MIGRATE_PCPTYPES):
        migratetype = MIGRATE_MOVABLE       # a reserved pageblock: decided when drained
    p.kind.word = PAGE_PCP | order << 8 | <uint32_t>migratetype << 16
    list_add(&p.lru, &pcp.lists[order_to_pindex(migratetype, order)])
    pcp.count += 1 << order
    pcp.alloc_factor >>= 1
    if pcp.free_count < z.batch << PCP_BATCH_SCALE_MAX:
        pcp.free_count += 1 << order
    if unlikely(pcp.count >= pcp.high or z.flags
                or (order > 0) != (pcp.flags & PCPF_PREV_FREE_HIGH_ORDER != 0)
                or order > 0 and pcp.free_count >= z.batch + z.high_min / 2):
        shrink_pcp(pcp, z, order)


# Compound tails are taken apart, poison is laid.
cdef void free_prepare_slow(machine* m, page* p, unsigned int order) noexcept nogil:
    cdef uint64_t i
    cdef uint64_t clear = <uint64_t>0xFFFF << PAGE_ZONE_SHIFT
    if p.flags & (<uint64_t>1 << PG_head):
        for i in range(1, <uint64_t>1 << order):
            (p + i).flags &= clear
            (p + i).index = 0
    if m.options & MACHINE_POISON:
        memset(<void*>page_address(m, p), PAGE_POISON, <uint64_t>PAGE_SIZE << order)
        for i in range(<uint64_t>1 << order):
            (p + i).flags |= <uint64_t>1 << PG_poisoned


cdef void free_to_zone(zone* z, page* p, uint64_t pfn, unsigned int order) noexcept nogil:
    p.kind.word = PAGE_TAIL
    spin_lock(&z.lock)
    free_one_page_locked(z, p, pfn, order, z.pageblock[(pfn >> PAGEBLOCK_ORDER)
                                                       - z.pageblock_start], False)
    spin_unlock(&z.lock)


cdef int64_t drain_all_pages(machine* m) noexcept nogil:
    cdef cpu_area* area
    cdef int64_t moved = 0
    freeze_cpu_areas(m)
    area = m.areas
    while area != NULL:
        moved += drain_area(m, area)
        area = area.next
    thaw_cpu_areas(m)
    return moved


# ---- per-thread areas -------------------------------------------------------
# The calling thread's last used area is one thread-local load away.  The boot area, which
# belongs to no machine, stands there first, so that the fast path needs no NULL test.

cdef extern from *:
    """
    #include <pthread.h>
    static char rm_boot_area[4096] __attribute__((aligned(64)));
    static __thread void *rm_this_area = rm_boot_area;
    static __thread void *rm_thread_areas;      /* all areas of this thread */
    static pthread_key_t rm_area_key;
    """
    cpu_area* this_area "rm_this_area"
    cpu_area* thread_areas "rm_thread_areas"
    cpu_area* boot_area "((void *)rm_boot_area)"
    ctypedef unsigned int pthread_key_t
    pthread_key_t area_key "rm_area_key"
    int pthread_key_create(pthread_key_t* key, void (*destructor)(void*) noexcept nogil) nogil
    int pthread_setspecific(pthread_key_t key, const void* value) nogil
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil) nogil

# Set where membarrier is refused (or a race detector must see locks): every area is then
# entered by its lock.
cdef int always_locked = 0
cdef uint64_t machine_ids = 0
# Orders the end of threads against the end of machines.
cdef spinlock registry_lock


cdef inline cpu_area* area_enter(machine* m) noexcept nogil:
    cdef cpu_area* area = this_area
    if unlikely(area.machine != m):
        area = area_find(m)
    poke_int(&area.busy, 1)
    barrier()
    if unlikely(peek_int(&area.stolen)):
        area_enter_locked(area)
    return area


cdef inline void area_exit(cpu_area* area) noexcept nogil:
    barrier()
    if unlikely(area.locked):
        area.locked = 0
        spin_unlock(&area.lock)
    else:
        poke_int(&area.busy, 0)


cdef void area_enter_locked(cpu_area* area) noexcept nogil:
    store_int(&area.busy, 0)
    spin_lock(&area.lock)
    area.locked = 1


cdef void area_set_cpu(cpu_area* area) noexcept nogil:
    cdef machine* m = area.machine
    cdef int cpu = this_cpu_id()
    area.cpu = cpu
    area.nid = m.cpu_to_node[cpu] if 0 <= cpu < m.nr_cpu_ids else m.cpu_to_node[0]


# This thread's area for m, made if it has none; the shared one where the host has no
# memory for another.
cdef cpu_area* area_find(machine* m) noexcept nogil:
    global this_area, thread_areas
    cdef cpu_area* area = thread_areas
    cdef cpu_area* vacant = NULL
    while area != NULL:
        if area.machine == m:
            this_area = area
            return area
        if area.machine == NULL and area.bytes >= m.area_bytes:
            vacant = area
        area = area.thread_next
    if vacant != NULL:
        area_reset(m, vacant)
        area = vacant
    else:
        area = area_new(m)
        if area == NULL:
            return m.shared_area
        area.thread_next = thread_areas
        thread_areas = area
        pthread_setspecific(area_key, area)
    area.stolen = always_locked
    area.machine = m
    area_set_cpu(area)
    spin_lock(&m.areas_lock)
    area.next = m.areas
    m.areas = area
    spin_unlock(&m.areas_lock)
    this_area = area
    return area


# A thread ends: its lists go back to the zones, its counts to the machines.
cdef void thread_ends(void* ignored) noexcept nogil:
    global this_area, thread_areas
    cdef cpu_area* area = thread_areas
    cdef cpu_area* next
    this_area = boot_area
    thread_areas = NULL
    while area != NULL:
        next = area.thread_next
        spin_lock(&registry_lock)       # against page_alloc_exit
        if area.machine != NULL:
            area_retire(area.machine, area)
        spin_unlock(&registry_lock)
        area_free(area)
        area = next


cdef void area_retire(machine* m, cpu_area* area) noexcept nogil:
    cdef cpu_area** link
    spin_lock(&m.areas_lock)
    link = &m.areas
    while link[0] != area:
        link = &link[0].next
    link[0] = area.next
    drain_area(m, area)
    area_fold(m, area)
    area.machine = NULL
    spin_unlock(&m.areas_lock)


cdef cpu_area* get_cpu_area(machine* m) noexcept nogil:
    cdef cpu_area* area = this_area
    return area if area.machine == m else area_find(m)


cdef cpu_area* borrow_area(machine* m) noexcept nogil:
    global this_area
    cdef cpu_area* before = this_area
    cdef cpu_area* area = thread_areas
    if before.machine == m:
        return before
    while area != NULL and area.machine != m:
        area = area.thread_next
    this_area = area if area != NULL else m.shared_area
    return before


cdef void return_area(cpu_area* before) noexcept nogil:
    global this_area
    this_area = before


cdef void count_vm_event(machine* m, int event, uint64_t delta) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    area.events[event] += delta
    area_exit(area)


cdef void freeze_cpu_areas(machine* m) noexcept nogil:
    cdef cpu_area* area
    spin_lock(&m.areas_lock)
    area = m.areas
    while area != NULL:
        atomic_xchg(&area.stolen, 1, SEQ_CST)
        area = area.next
    if not always_locked:
        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    area = m.areas
    while area != NULL:
        # The owner saw the flag, or is between busy = 1 and busy = 0 and will leave.  The
        # shared area's owners come by the lock alone.
        while area != m.shared_area and not always_locked and load_int(&area.busy):
            sched_yield()
        spin_lock(&area.lock)
        area = area.next


cdef void thaw_cpu_areas(machine* m) noexcept nogil:
    cdef cpu_area* area = m.areas
    while area != NULL:
        if area != m.shared_area:
            store_int(&area.stolen, always_locked)
        spin_unlock(&area.lock)
        area = area.next
    spin_unlock(&m.areas_lock)


# ---- life -------------------------------------------------------------------

cdef int page_alloc_init(machine* m) noexcept nogil:
    global machine_ids
    m.area_bytes = sizeof(cpu_area) + m.nr_zones * sizeof(per_cpu_pages)
    m.shared_area = area_new(m)
    if m.shared_area == NULL:
        return -ENOMEM
    m.shared_area.stolen = 1
    m.shared_area.machine = m
    m.shared_area.nid = m.cpu_to_node[0]
    m.areas = m.shared_area
    spin_lock(&registry_lock)
    machine_ids += 1
    m.id = machine_ids
    spin_unlock(&registry_lock)
    return 0


cdef void page_alloc_exit(machine* m) noexcept nogil:
    cdef cpu_area* area
    spin_lock(&registry_lock)
    area = m.areas
    while area != NULL:
        area.machine = NULL     # its thread reuses or frees it
        area = area.next
    m.areas = NULL
    spin_unlock(&registry_lock)
    area_free(m.shared_area)


cdef void after_fork_in_child() noexcept nogil:
    global fork_generation, this_area, thread_areas
    fork_generation += 1
    this_area = boot_area       # the areas were not inherited
    thread_areas = NULL
    pthread_setspecific(area_key, NULL)


# ---- small arithmetic -------------------------------------------------------

cdef bint gfp_is_valid(uint32_t gfp) noexcept nogil:
    return not GFP_ZONE_BAD >> (gfp & 15) & 1 and gfp >> 3 & 3 != 3


# DMA -> DMA; DMA32 -> DMA32; HIGHMEM with MOVABLE -> Movable; all others -> Normal.
cdef inline int gfp_zone(uint32_t gfp) noexcept nogil:
    return <uint32_t>0xa9b2a9a2 >> ((gfp & 15) * 2) & 3


cdef inline int gfp_migratetype(uint32_t gfp) noexcept nogil:
    return gfp >> 3 & 3


pthread_key_create(&area_key, thread_ends)
pthread_atfork(NULL, NULL, after_fork_in_child)
if membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0:
    always_locked = 1
