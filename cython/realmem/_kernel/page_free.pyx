# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Freeing pages: checks, references, per-CPU lists.
# Compare mm/page_alloc.c (Linux 6.18): __free_pages(), free_frozen_page_commit().
from libc.stdint cimport INT32_MAX, int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.buddy cimport free_one_page_locked
from realmem._kernel.pcp cimport (
    PCP_BATCH_SCALE_MAX, order_to_pindex, pcp_allowed_order, shrink_pcp,
)
from realmem._kernel.percpu cimport area_enter, area_exit, attach_areas, current_area
from realmem._kernel.run cimport is_in_run
from realmem.compiler cimport (
    SEQ_CST, atomic_add_return, barrier, likely, load64, peeku64, poke_int, spin_lock,
    spin_unlock, unlikely,
)
from realmem.types cimport (
    COUNTS_FREE, COUNTS_NEW, MACHINE_POISON, MIGRATE_ISOLATE, MIGRATE_MOVABLE, MIGRATE_PCPTYPES,
    PAGE_ALLOC_COSTLY_ORDER, PAGE_ALLOCATED, PAGE_BAD, PAGE_BUDDY, PAGE_FLAGS_CHECK_AT_FREE,
    PAGE_PCP, PAGE_POISON, PAGE_RESERVED, PAGE_SIZE, PAGE_TAIL, PAGE_ZONE_SHIFT,
    PAGEBLOCK_ORDER, PCPF_PREV_FREE_HIGH_ORDER, PGFREE, TYPES_SHIFT, cpu_area, free_memo,
    list_add, list_head, machine, page, page_address, page_to_pfn, page_zone, per_cpu_pages,
    pfn_to_page, PG_head, PG_poisoned, zone,
)


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
        # A mapping holds a reference of its own, which is not the caller's to drop.
        if unlikely((p.counts.c.mapcount >= 0 and p.counts.c.refcount <= p.counts.c.mapcount + 1)
                    or (p.counts.c.refcount == 1 and p.flags & PAGE_FLAGS_CHECK_AT_FREE)):
            return FREE_MAPPED
        return FREE_OK
    if state == PAGE_RESERVED or state == PAGE_BAD:
        return FREE_RESERVED
    if state == PAGE_BUDDY or state == PAGE_PCP:
        return FREE_ALREADY
    return FREE_ALREADY if is_in_run(m, pfn) or in_free_block(m, pfn) else FREE_TAIL


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


# What the fast path leaves to, called by pointer lest it be inlined.
cdef void (*free_slowly)(machine* m, page* p, unsigned int order) noexcept nogil


# The fast path: a leaf, as alloc_pages_node().  The memo's zone and type are guesses that
# are compared with the page's own; so the list's address does not wait for them, which a
# block that goes round alloc and free would otherwise feel.
cdef void free_pages(machine* m, page* p, unsigned int order) noexcept nogil:
    cdef cpu_area* area = current_area()
    cdef const free_memo* memo = &area.frees[order]
    cdef uint64_t block
    cdef uint64_t limit
    cdef per_cpu_pages* pcp
    cdef list_head* head
    cdef list_head* first
    cdef int32_t count
    cdef int32_t free_count
    cdef uint32_t pages
    poke_int(&area.busy, 1)
    barrier()
    block = memo.block
    if likely(area.fast == m and p.flags == memo.flags and p.counts.word == COUNTS_NEW
              and p.mapping == NULL
              and memo.types[<uint64_t>p >> TYPES_SHIFT] == <uint8_t>(block >> 32)
              and not memo.z.flags):
        pcp = memo.pcp
        pages = <uint32_t>block
        limit = memo.limit
        count = pcp.count + pages
        free_count = pcp.free_count
        if likely(free_count < <int32_t>limit):
            free_count += pages
        elif block >> 48:
            count = INT32_MAX           # a run of such orders: for the slow path
        if likely(count < pcp.high
                  and (<uint16_t*>&pcp.alloc_factor)[0] == block >> 48):
            head = memo.head
            first = head.next
            p.lru.next = first
            p.lru.prev = head
            first.prev = &p.lru
            head.next = &p.lru
            p.counts.word = COUNTS_FREE
            p.kind.word = limit >> 32
            pcp.count = count
            pcp.free_count = free_count
            area.events[PGFREE] += pages
            barrier()
            poke_int(&area.busy, 0)
            return
    poke_int(&area.busy, 0)
    free_slowly(m, p, order)


# The reference goes inside the area: a recount meanwhile sees the block here or there, never
# allocated without a reference.
cdef void free_pages_slow(machine* m, page* p, unsigned int order) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    cdef bint compound = (peeku64(&p.flags) & (<uint64_t>1 << PG_head)) != 0
    cdef page* tail
    if likely(put_page_testzero(p)):
        if pcp_allowed_order(order) and not m.options & MACHINE_POISON:
            remember_free(m, area, p, order)
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
# mapping needs no atomic operation; but what others did to it before they dropped theirs must
# have been done.
cdef inline bint put_page_testzero(page* p) noexcept nogil:
    if likely(load64(&p.counts.word) == COUNTS_NEW):
        p.counts.word = COUNTS_FREE
        return True
    return atomic_add_return(&p.counts.c.refcount, -1, SEQ_CST) == 0


# Work out what the fast path needs for the next block of this order, zone and type.
cdef void remember_free(machine* m, cpu_area* area, const page* p,
                        unsigned int order) noexcept nogil:
    cdef free_memo* memo = &area.frees[order]
    cdef zone* z = page_zone(m, p)
    cdef uint64_t block = page_to_pfn(m, p) >> PAGEBLOCK_ORDER
    cdef int migratetype = z.pageblock[block - z.pageblock_start]
    cdef bint is_high = 0 < order <= PAGE_ALLOC_COSTLY_ORDER
    cdef int32_t most = z.batch << PCP_BATCH_SCALE_MAX
    # Blocks of other types never come by the fast path, nor any where a pageblock's struct
    # pages do not fill the range of addresses that they are looked up by.
    if migratetype >= MIGRATE_PCPTYPES or <uint64_t>m.vmemmap & ((1 << TYPES_SHIFT) - 1):
        return
    memo.flags = p.flags & <uint64_t>0xFFFF << PAGE_ZONE_SHIFT
    memo.types = z.pageblock - z.pageblock_start - (<uint64_t>m.vmemmap >> TYPES_SHIFT)
    memo.z = z
    memo.pcp = area.pcp + z.index
    memo.head = &memo.pcp.lists[order_to_pindex(migratetype, order)]
    memo.block = (<uint64_t>1 << order | <uint64_t>migratetype << 32
                  | <uint64_t>(PCPF_PREV_FREE_HIGH_ORDER << 8 if is_high else 0) << 48)
    if is_high:
        most = min(most, z.batch + z.high_min / 2 - (1 << order))
    memo.limit = (<uint32_t>most
                  | <uint64_t>(PAGE_PCP | order << 8 | <uint32_t>migratetype << 16) << 32)


# Free a block that nobody refers to any more.  Compare free_frozen_pages().
cdef inline void free_to_area(machine* m, cpu_area* area, page* p,
                              unsigned int order) noexcept nogil:
    cdef zone* z = page_zone(m, p)
    cdef per_cpu_pages* pcp = area.pcp + z.index
    cdef bint is_high = 0 < order <= PAGE_ALLOC_COSTLY_ORDER
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
    if unlikely(pcp.count >= pcp.high or z.flags or is_high != (pcp.flags != 0)
                or is_high and pcp.free_count >= z.batch + z.high_min / 2):
        shrink_pcp(pcp, z, order, order_to_pindex(migratetype, order))


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


free_slowly = free_pages_slow
attach_areas()
