# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Allocating pages: zonelists, watermarks, per-CPU lists.
# Compare mm/page_alloc.c (Linux 6.18): get_page_from_freelist(), __alloc_pages_slowpath().
#
# The fast path holds no lock: it works on the calling thread's own lists (types.pxd:
# cpu_area).  Everything that leaves it is a separate function, so that it stays small.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.buddy cimport (
    ALLOC_HIGHATOMIC, ALLOC_KSWAPD, ALLOC_MIN_RESERVE, ALLOC_NO_WATERMARKS, ALLOC_NOFRAGMENT,
    ALLOC_NON_BLOCK, ALLOC_WMARK_LOW, ALLOC_WMARK_MASK, ALLOC_WMARK_MIN,
    reserve_highatomic_pageblock, rmqueue_locked, take_back_for, unreserve_highatomic_pageblock,
    zone_watermark_ok,
)
from realmem._kernel.fault_inject cimport should_fail
from realmem._kernel.pcp cimport order_to_pindex, pcp_allowed_order, rmqueue_pcplist
from realmem._kernel.percpu cimport (
    area_enter, area_exit, area_set_cpu, attach_areas, count_vm_event, current_area,
    drain_all_pages,
)
from realmem._kernel.run cimport run_take
from realmem.compiler cimport (
    SEQ_CST, atomic64_add_return, barrier, cpu_hint, likely, peek64, poke_int, spin_lock,
    spin_unlock, this_cpu_id, unlikely,
)
from realmem.types cimport (
    ALLOCSTALL, COUNTS_FREE, COUNTS_NEW, GFP_COMP, GFP_DIRECT_RECLAIM, GFP_FS, GFP_HIGH, GFP_IO,
    GFP_KSWAPD_RECLAIM, GFP_MEMALLOC, GFP_NOFAIL, GFP_NOMEMALLOC, GFP_NORETRY,
    GFP_RETRY_MAYFAIL, GFP_THISNODE, GFP_ZERO, INJECT_PAGE_ALLOC, KSWAPD_WAKE, MACHINE_INJECT,
    MACHINE_POISON, MAX_NR_ZONES,
    NUMA_FOREIGN, NUMA_HIT, NUMA_INTERLEAVE_HIT, NUMA_LOCAL, NUMA_MISS, NUMA_OTHER,
    PAGE_ALLOCATED, PAGE_ALLOC_COSTLY_ORDER, PAGE_BAD, PAGE_FLAGS_CHECK_AT_FREE, PAGE_SIZE,
    PG_head, PG_poisoned, PG_tail, WMARK_HIGH, ZONE_BELOW_HIGH, ZONE_NORMAL, alloc_memo,
    cpu_area, list_del, list_empty, list_head, lru_to_page, machine, page, page_address, page_run,
    page_to_pfn, page_zone, per_cpu_pages, zone,
)

cdef enum:
    MAX_RECLAIM_RETRIES = 16
    # gfp & 15 (DMA HIGHMEM DMA32 MOVABLE) -> highest zone, two bits each; and the
    # combinations that name no zone (include/linux/gfp.h:GFP_ZONE_TABLE).
    GFP_ZONE_BAD = 0xE8E8


# What the fast path leaves to; set at import and never changed.  Called by this pointer
# because it would be inlined else, and cost the fast path six registers saved a call.
cdef page* (*alloc_slowly)(machine* m, int nid, uint32_t gfp,
                           unsigned int order) noexcept nogil


# The fast path: a leaf that takes a block from the list that its memo names, if all is as it
# was when the memo was made.  What it cannot do at once it leaves as it is.  Flags and mapping
# were tested before the block came to the list.
cdef page* alloc_pages_node(machine* m, int nid, uint32_t gfp,
                            unsigned int order) noexcept nogil:
    cdef cpu_area* area = current_area()
    cdef const alloc_memo* memo = &area.allocs[order]
    cdef list_head* head
    cdef list_head* next
    cdef per_cpu_pages* pcp
    cdef uint64_t* served
    cdef uint64_t block
    cdef page* p
    poke_int(&area.busy, 1)
    barrier()
    if likely(area.fast == m and area.cpu == cpu_hint()
              and memo.request == (<uint64_t><uint32_t>nid << 32 | gfp)
              and memo.z.free_pages - memo.z.nr_free_highatomic >= memo.mark
              and (<const uint64_t*>memo.z.area_mask)[0] & memo.areas):
        head = memo.head
        p = lru_to_page(head.next)
        if likely(head.next != head and p.counts.word == COUNTS_FREE):
            next = p.lru.next
            head.next = next
            next.prev = head
            pcp = memo.pcp
            served = memo.served
            block = memo.block
            pcp.count -= <int32_t>block
            pcp.free_count >>= 1
            served[0] += 1
            p.counts.word = COUNTS_NEW
            p.kind.word = block >> 32
            barrier()
            poke_int(&area.busy, 0)
            return p
    poke_int(&area.busy, 0)
    return alloc_slowly(m, nid, gfp, order)


cdef page* alloc_pages_slow(machine* m, int nid, uint32_t gfp,
                            unsigned int order) noexcept nogil:
    cdef cpu_area* area
    cdef zone** zonelist
    cdef int asked = nid
    cdef int highest
    cdef page* p
    if unlikely(m.options & MACHINE_INJECT) and should_fail_alloc_page(m, gfp):
        return NULL
    area = area_enter_here(m)
    if nid < 0:
        nid = area.nid
    highest = gfp_zone(gfp)
    zonelist = m.zonelists[(nid * 2 + ((gfp & GFP_THISNODE) != 0)) * MAX_NR_ZONES + highest]
    if (pcp_allowed_order(order) and not gfp & (GFP_ZERO | GFP_COMP)
            and not m.options & (MACHINE_POISON | MACHINE_INJECT) and zonelist[0] != NULL):
        remember_alloc(area, asked, gfp, order, zonelist[0], highest)
    p = rmqueue_fast(m, area, zonelist[0], highest, gfp, order)
    area_exit(area)
    if unlikely(p == NULL):
        p = alloc_pages_general(m, zonelist, highest, gfp, order)
    return p


# Enter the thread's area, which knows the CPU that the thread is on.
cdef inline cpu_area* area_enter_here(machine* m) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    if unlikely(this_cpu_id() != area.cpu):
        area_set_cpu(area)
    return area


# Compare mm/fail_page_alloc.c:should_fail_alloc_page(); here requests that may reclaim fail
# too, as that file's ignore-gfp-wait off makes them.
cdef bint should_fail_alloc_page(machine* m, uint32_t gfp) noexcept nogil:
    return not gfp & GFP_NOFAIL and should_fail(&m.faults[INJECT_PAGE_ALLOC])


# Work out what the fast path needs for the next such request.
cdef void remember_alloc(cpu_area* area, int nid, uint32_t gfp, unsigned int order, zone* z,
                         int highest) noexcept nogil:
    cdef alloc_memo* memo = &area.allocs[order]
    cdef per_cpu_pages* pcp = area.pcp + z.index
    cdef int migratetype = gfp_migratetype(gfp)
    memo.request = <uint64_t><uint32_t>nid << 32 | gfp
    memo.z = z
    memo.mark = <int64_t>(z.watermark[WMARK_HIGH] + z.lowmem_reserve[highest]
                          + (<uint64_t>1 << order))
    # Reserved and isolated blocks are not for everybody: three lanes of four.
    memo.areas = (<uint64_t>0xFFFF << order & 0xFFFF) * <uint64_t>0x100010001
    memo.head = &pcp.lists[order_to_pindex(migratetype, order)]
    memo.pcp = pcp
    memo.served = &pcp.served[z.nid == area.nid][order]
    memo.block = (<uint64_t>1 << order
                  | <uint64_t>(PAGE_ALLOCATED | order << 8 | <uint32_t>migratetype << 16) << 32)


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
        p = rmqueue_locked(z, order, migratetype, ALLOC_WMARK_LOW | nofragment_flag(z))
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
    if unlikely(peek64(&z.free_pages) - z.nr_free_highatomic
                < <int64_t>(z.watermark[WMARK_HIGH] + z.lowmem_reserve[highest])
                + (<int64_t>1 << order)):
        return False
    if order == 0:
        return True
    return (z.area_mask[0] | z.area_mask[1] | z.area_mask[2]) >> order != 0


# Everything else: other zones and nodes, refills, watermarks, reclaim.
cdef page* alloc_pages_general(machine* m, zone** zonelist, int highest, uint32_t gfp,
                               unsigned int order) noexcept nogil:
    cdef page* p
    if zonelist[0] == NULL:
        return NULL
    p = get_page_from_freelist(m, zonelist, highest, gfp, order,
                               ALLOC_WMARK_LOW | nofragment_flag(zonelist[0]))
    if p == NULL:
        p = alloc_pages_slowpath(m, zonelist, highest, gfp, order)
    return p


# Walk the zonelist; NULL when no zone may give a block.  Compare get_page_from_freelist().
cdef page* get_page_from_freelist(machine* m, zone** zonelist, int highest, uint32_t gfp,
                                  unsigned int order, unsigned int alloc_flags) noexcept nogil:
    cdef cpu_area* area = area_enter_here(m)
    cdef page* p = walk_zonelist(m, area, zonelist, highest, gfp, order, alloc_flags)
    area_exit(area)
    return p


cdef page* walk_zonelist(machine* m, cpu_area* area, zone** zonelist, int highest, uint32_t gfp,
                         unsigned int order, unsigned int alloc_flags) noexcept nogil:
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
    if unlikely(z.runs != NULL) and order > 0:
        take_back_for(z, order)
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
cdef inline unsigned int nofragment_flag(const zone* z) noexcept nogil:
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
                or p.flags & PAGE_FLAGS_CHECK_AT_FREE or m.options & MACHINE_POISON):
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
cdef page* alloc_pages_slowpath(machine* m, zone** zonelist, int highest, uint32_t gfp,
                                unsigned int order) noexcept nogil:
    cdef unsigned int alloc_flags = gfp_to_alloc_flags(gfp, order)
    cdef int turns = 0
    # Whoever holds locks that it takes asks without these.
    cdef bint may_reclaim = m.reclaim != NULL and gfp & GFP_IO and gfp & GFP_FS
    cdef int64_t progress
    cdef page* p
    if gfp & GFP_KSWAPD_RECLAIM:
        count_vm_event(m, KSWAPD_WAKE, 1)
        if m.wake_kswapd != NULL:
            m.wake_kswapd(m, zonelist)
        alloc_flags |= nofragment_flag(zonelist[0])
    p = get_page_from_freelist(m, zonelist, highest, gfp, order, alloc_flags)
    if p != NULL:
        return p
    if gfp & GFP_MEMALLOC and not gfp & GFP_NOMEMALLOC:
        alloc_flags = ALLOC_NO_WATERMARKS | (alloc_flags & ALLOC_KSWAPD)
        p = get_page_from_freelist(m, zonelist, highest, gfp, order, alloc_flags)
        if p != NULL:
            return p
    if not gfp & GFP_DIRECT_RECLAIM:
        return NULL
    while True:
        count_vm_event(m, ALLOCSTALL + zonelist[0].kind, 1)
        progress = 0
        if may_reclaim:
            progress = m.reclaim(m, zonelist[0], gfp, order)
        if m.shrink_objects != NULL:
            progress += m.shrink_objects(m)
        drain_all_pages(m)
        p = get_page_from_freelist(m, zonelist, highest, gfp, order, alloc_flags)
        if p != NULL:
            return p
        if unreserve_highatomic(zonelist, False):
            progress += 1
        turns = 0 if progress else turns + 1
        if gfp & GFP_NORETRY or order > PAGE_ALLOC_COSTLY_ORDER and not gfp & GFP_RETRY_MAYFAIL:
            break
        if turns > 0 and (not may_reclaim or turns > MAX_RECLAIM_RETRIES):
            # Before giving up, the last of the reserve.
            if not unreserve_highatomic(zonelist, True):
                break
            turns = 0
    if gfp & GFP_NOFAIL:
        # The last resort before failing all the same: below every mark.
        return get_page_from_freelist(m, zonelist, highest, gfp, order,
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
    cdef cpu_area* area
    cdef zone** zonelist
    cdef int highest = gfp_zone(gfp)
    cdef uint64_t i = 0
    cdef page* p
    if unlikely(m.options & MACHINE_INJECT) and should_fail_alloc_page(m, gfp):
        return 0
    area = area_enter_here(m)
    if nid < 0:
        nid = area.nid
    zonelist = m.zonelists[(nid * 2 + ((gfp & GFP_THISNODE) != 0)) * MAX_NR_ZONES + highest]
    while i < n:
        p = rmqueue_fast(m, area, zonelist[0], highest, gfp, 0)
        if unlikely(p == NULL):
            area_exit(area)
            p = alloc_pages_general(m, zonelist, highest, gfp, 0)
            area = area_enter_here(m)
            if p == NULL:
                break
        pfns_ret[i] = page_to_pfn(m, p)
        i += 1
    area_exit(area)
    return i


cdef page* alloc_run_pages(machine* m, page_run* run, unsigned int i, unsigned int order,
                           int nid, uint32_t gfp) noexcept nogil:
    cdef int highest = gfp_zone(gfp)
    cdef cpu_area* area
    cdef zone* z
    cdef page* p = NULL
    if unlikely(m.options & MACHINE_INJECT):
        return NULL                     # the request is the one that may fail
    area = area_enter_here(m)
    z = m.zonelists[(area.nid if nid < 0 else nid) * 2 * MAX_NR_ZONES + highest][0]
    if z == run.z and above_high_mark(z, highest, order):
        p = run_take(run, i, order)
    if p != NULL:
        zone_statistics(area, z, z, 1)
        area.pcp[z.index].pgalloc += 1 << order
        if unlikely(not prep_new_page(m, p, order, gfp, gfp_migratetype(gfp))):
            p = NULL
    area_exit(area)
    return p


cdef void split_page(machine* m, page* p, unsigned int order) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    cdef uint64_t i
    for i in range(<uint64_t>1 << order):
        (p + i).counts.word = COUNTS_NEW
        (p + i).kind.word = (p.kind.word & 0xFF0000) | PAGE_ALLOCATED
    area_exit(area)


# ---- small arithmetic -------------------------------------------------------

cdef bint gfp_is_valid(uint32_t gfp) noexcept nogil:
    return not GFP_ZONE_BAD >> (gfp & 15) & 1 and gfp >> 3 & 3 != 3


# DMA -> DMA; DMA32 -> DMA32; HIGHMEM with MOVABLE -> Movable; all others -> Normal.
cdef inline int gfp_zone(uint32_t gfp) noexcept nogil:
    return <uint32_t>0xa9b2a9a2 >> ((gfp & 15) * 2) & 3


cdef inline int gfp_migratetype(uint32_t gfp) noexcept nogil:
    return gfp >> 3 & 3


alloc_slowly = alloc_pages_slow
attach_areas()
