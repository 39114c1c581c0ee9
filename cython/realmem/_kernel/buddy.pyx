# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Free areas of one zone.  Compare mm/page_alloc.c (Linux 6.18): __rmqueue(),
# __free_one_page(), try_to_claim_block(), reserve_highatomic_pageblock().
# Callers stand above callees; every function here runs under z.lock.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from realmem._kernel.lock_order cimport LOCK_ZONE, check_spinlock
from realmem.compiler cimport VM_BUG_ON, ctz, likely, spin_lock, spin_unlock, unlikely
from realmem.types cimport (
    MAX_PAGE_ORDER, MIGRATE_HIGHATOMIC, MIGRATE_MOVABLE, MIGRATE_PCPTYPES, MIGRATE_RECLAIMABLE,
    MIGRATE_TYPES, MIGRATE_UNMOVABLE, NR_PAGE_ORDERS, PAGE_ALLOCATED, PAGE_BUDDY, PAGE_TAIL,
    PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, free_area, list_add, list_add_tail, list_del,
    list_empty, list_init, lru_to_page, page, page_run, page_to_pfn, pfn_to_page, zone,
)


cdef page* rmqueue_locked(zone* z, unsigned int order, int migratetype,
                          unsigned int alloc_flags) noexcept nogil:
    cdef page* p
    if z.split_free and z.split_order == order and z.split_type == migratetype and (
            not alloc_flags & ALLOC_HIGHATOMIC):
        return take_split(z)
    p = rmqueue_lists(z, order, migratetype, alloc_flags)
    while unlikely(p == NULL and z.runs != NULL):
        take_back_run(z, z.runs)
        p = rmqueue_lists(z, order, migratetype, alloc_flags)
    return p


cdef page* rmqueue_own_locked(zone* z, unsigned int order, int migratetype) noexcept nogil:
    settle_locked(z)
    return rmqueue_smallest(z, order, migratetype)


cdef inline page* rmqueue_lists(zone* z, unsigned int order, int migratetype,
                                unsigned int alloc_flags) noexcept nogil:
    cdef page* p = NULL
    settle_locked(z)
    if unlikely(alloc_flags & ALLOC_HIGHATOMIC):
        p = rmqueue_smallest(z, order, MIGRATE_HIGHATOMIC)
        if p != NULL:
            return p
    p = rmqueue_smallest(z, order, migratetype)
    if likely(p != NULL):
        return p
    if unlikely(z.runs != NULL and migratetype == MIGRATE_MOVABLE):
        return NULL             # runs have such, and no pageblock needs to change its type
    p = rmqueue_claim(z, order, migratetype, alloc_flags)
    if p == NULL and not alloc_flags & ALLOC_NOFRAGMENT:
        p = rmqueue_steal(z, order, migratetype)
    # An allocation that cannot wait may break into the reserve rather than fail.
    if p == NULL and alloc_flags & (ALLOC_OOM | ALLOC_NON_BLOCK):
        p = rmqueue_smallest(z, order, MIGRATE_HIGHATOMIC)
    return p


# The smallest block that fits has nothing smaller beside it: what is left of it after a first
# block was cut off goes out next, in order of addresses, until all of it is gone.
cdef page* rmqueue_run_locked(zone* z, unsigned int order, unsigned int most, int migratetype,
                              unsigned int alloc_flags, unsigned int* order_ret) noexcept nogil:
    cdef uint32_t mask
    settle_locked(z)
    mask = z.area_mask[migratetype] >> order
    order_ret[0] = order
    if unlikely(mask == 0):
        return rmqueue_locked(z, order, migratetype, alloc_flags)
    order_ret[0] += min(most, ctz(mask))
    return rmqueue_smallest(z, order_ret[0], migratetype)


cdef inline page* rmqueue_smallest(zone* z, unsigned int order, int migratetype) noexcept nogil:
    cdef uint32_t mask = z.area_mask[migratetype] >> order
    cdef unsigned int found
    cdef page* p
    if mask == 0:
        return NULL
    found = order + ctz(mask)
    p = lru_to_page(z.free_area[found].free_list[migratetype].next)
    del_from_free_list(z, p, found, migratetype)
    expand(z, p, order, found, migratetype)
    z.free_pages -= <int64_t>1 << order
    z.split = p
    z.split_order = order
    z.split_from = found
    z.split_type = migratetype
    return p


# Give back the upper halves of a block of order `high` until one of order `low` is left.
cdef inline void expand(zone* z, page* p, unsigned int low, unsigned int high,
                        int migratetype) noexcept nogil:
    while high > low:
        high -= 1
        add_to_free_list(z, p + (<uint64_t>1 << high), high, migratetype, False)


# Fallback by taking over a whole pageblock: the largest block of another type first, so
# that few pageblocks end up mixed.  Compare __rmqueue_claim().
cdef page* rmqueue_claim(zone* z, unsigned int order, int start_type,
                         unsigned int alloc_flags) noexcept nogil:
    cdef int current = MAX_PAGE_ORDER
    cdef int min_order = order
    cdef int block_type
    cdef page* p
    if alloc_flags & ALLOC_NOFRAGMENT and min_order < PAGEBLOCK_ORDER:
        min_order = PAGEBLOCK_ORDER
    while current >= min_order:
        if not should_try_claim_block(current, start_type):
            return NULL         # smaller ones are even less worth it
        block_type = find_fallback(z, current, start_type)
        if block_type >= 0:
            p = lru_to_page(z.free_area[current].free_list[block_type].next)
            if unlikely(z.runs != NULL) and take_back_at(z, page_to_pfn(z.machine, p)):
                current = MAX_PAGE_ORDER        # p has merged with what was taken back
                continue
            p = try_to_claim_block(z, p, current, order, start_type, block_type)
            if p != NULL:
                return p
        current -= 1
    return NULL


# Fallback by taking only what is needed, the smallest block first.
# Compare __rmqueue_steal().
cdef page* rmqueue_steal(zone* z, unsigned int order, int start_type) noexcept nogil:
    cdef unsigned int current
    cdef int block_type
    cdef page* p
    for current in range(order, NR_PAGE_ORDERS):
        block_type = find_fallback(z, current, start_type)
        if block_type < 0:
            continue
        p = lru_to_page(z.free_area[current].free_list[block_type].next)
        del_from_free_list(z, p, current, block_type)
        expand(z, p, order, current, block_type)
        z.free_pages -= <int64_t>1 << order
        return p
    return NULL


# Large blocks are always worth claiming; small ones only for the types that would
# otherwise pollute a movable pageblock.
cdef inline bint should_try_claim_block(int order, int start_type) noexcept nogil:
    return (order >= PAGEBLOCK_ORDER >> 1 or start_type == MIGRATE_RECLAIMABLE
            or start_type == MIGRATE_UNMOVABLE)


# The type whose list to fall back to at this order, or -1.  Unmovable and reclaimable
# try each other first; movable is the last resort of both, and prefers reclaimable.
cdef inline int find_fallback(const zone* z, int order, int start_type) noexcept nogil:
    cdef int first
    cdef int second
    if start_type == MIGRATE_UNMOVABLE:
        first, second = MIGRATE_RECLAIMABLE, MIGRATE_MOVABLE
    elif start_type == MIGRATE_MOVABLE:
        first, second = MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE
    else:
        first, second = MIGRATE_UNMOVABLE, MIGRATE_MOVABLE
    if z.area_mask[first] >> order & 1:
        return first
    if z.area_mask[second] >> order & 1:
        return second
    return -1


# Make the pageblock of free block p ours if most of it is free or alike, and allocate
# from it.  Compare try_to_claim_block().
cdef page* try_to_claim_block(zone* z, page* p, unsigned int current, unsigned int order,
                              int start_type, int block_type) noexcept nogil:
    cdef uint64_t pfn = page_to_pfn(z.machine, p)
    cdef uint64_t start
    cdef uint64_t nr_free = 0
    cdef uint64_t nr_movable = 0
    cdef uint64_t alike
    if current >= PAGEBLOCK_ORDER:
        del_from_free_list(z, p, current, block_type)
        change_pageblock_range(z, pfn, current, start_type)
        expand(z, p, order, current, start_type)
        z.free_pages -= <int64_t>1 << order
        return p
    start = pfn & ~<uint64_t>(PAGEBLOCK_NR_PAGES - 1)
    if not block_in_zone(z, start):
        return NULL
    count_pageblock(z, start, &nr_free, &nr_movable)
    if start_type == MIGRATE_MOVABLE:
        alike = nr_movable
    elif block_type == MIGRATE_MOVABLE:
        alike = PAGEBLOCK_NR_PAGES - (nr_free + nr_movable)
    else:
        alike = 0               # unmovable against reclaimable: cannot be told apart
    if nr_free + alike < PAGEBLOCK_NR_PAGES >> 1:
        return NULL
    move_freepages_block(z, start, start_type)
    return rmqueue_smallest(z, order, start_type)


# A pageblock that is to change its type takes what a run has left of it along.
# Returns: whether there was such a run.
cdef bint take_back_at(zone* z, uint64_t pfn) noexcept nogil:
    cdef page_run* run = z.run_at[(pfn >> PAGEBLOCK_ORDER) - z.pageblock_start]
    if run != NULL:
        take_back_run(z, run)
    return run != NULL


cdef void take_back_for(zone* z, unsigned int order) noexcept nogil:
    while z.runs != NULL and (z.area_mask[0] | z.area_mask[1] | z.area_mask[2]) >> order == 0:
        spin_lock(&z.lock)
        if z.runs != NULL:
            take_back_run(z, z.runs)
        spin_unlock(&z.lock)


cdef inline bint block_in_zone(const zone* z, uint64_t start) noexcept nogil:
    return (start >= z.start_pfn
            and start + PAGEBLOCK_NR_PAGES <= z.start_pfn + z.spanned_pages)


# Free frames and frames of movable allocations in one pageblock.
cdef void count_pageblock(zone* z, uint64_t start, uint64_t* nr_free_ret,
                          uint64_t* nr_movable_ret) noexcept nogil:
    cdef uint64_t pfn = start
    cdef uint64_t step
    cdef page* p
    while pfn < start + PAGEBLOCK_NR_PAGES:
        p = pfn_to_page(z.machine, pfn)
        step = 1
        if p.kind.h.state == PAGE_BUDDY:
            step = <uint64_t>1 << p.kind.h.order
            nr_free_ret[0] += step
        elif p.kind.h.state == PAGE_ALLOCATED:
            step = <uint64_t>1 << p.kind.h.order
            if p.kind.h.migratetype == MIGRATE_MOVABLE:
                nr_movable_ret[0] += step
        pfn += step


# Change a pageblock's type and move its free blocks to that type's lists.
# Returns the free pages moved.
cdef int64_t move_freepages_block(zone* z, uint64_t start, int new_type) noexcept nogil:
    cdef uint64_t pfn = start
    cdef int64_t moved = 0
    cdef unsigned int order
    cdef page* p
    while pfn < start + PAGEBLOCK_NR_PAGES:
        p = pfn_to_page(z.machine, pfn)
        if p.kind.h.state != PAGE_BUDDY:
            pfn += 1
            continue
        order = p.kind.h.order
        del_from_free_list(z, p, order, p.kind.h.migratetype)
        add_to_free_list(z, p, order, new_type, True)
        moved += <int64_t>1 << order
        pfn += <uint64_t>1 << order
    set_pageblock_migratetype(z, start, new_type)
    return moved


# ---- a block that comes and goes ----
# Cutting a small block from a large one and merging it back touches a list at each order
# between.  The block cut last, given back before anything else happened, would merge to
# exactly what it was cut from, and be cut again in the same way: so that merging waits until
# somebody asks for something else.  Only free_pages and area_mask, which are read without the
# lock, are brought up to date at once.

cdef void settle_locked(zone* z) noexcept nogil:
    cdef page* p = z.split
    z.split = NULL
    if unlikely(z.split_free):
        z.split_free = 0
        z.area_mask[z.split_type] = z.split_mask
        z.free_pages -= <int64_t>1 << z.split_order
        p.kind.word = PAGE_TAIL
        merge(z, p, page_to_pfn(z.machine, p), z.split_order, z.split_type, False)


cdef inline page* take_split(zone* z) noexcept nogil:
    z.split_free = 0
    z.area_mask[z.split_type] = z.split_mask
    z.free_pages -= <int64_t>1 << z.split_order
    z.split.kind.word = PAGE_TAIL
    return z.split


# Whether p may wait: it would merge to what it was cut from, no further, and head the list of
# such blocks, being the only one or not bound for the tail.
cdef inline bint may_wait(const zone* z, page* p, uint64_t pfn, unsigned int order,
                          int migratetype) noexcept nogil:
    cdef unsigned int whole = z.split_from
    # Free pages of reserved pageblocks are also counted apart.
    if (p != z.split or order != z.split_order or migratetype != z.split_type
            or migratetype >= MIGRATE_PCPTYPES):
        return False
    if whole == MAX_PAGE_ORDER:
        return True
    if has_free_buddy(z, p, pfn, whole):
        return False
    return not (z.area_mask[migratetype] >> whole & 1 and buddy_merge_likely(z, p, pfn, whole))


cdef inline bint has_free_buddy(const zone* z, page* p, uint64_t pfn,
                                unsigned int order) noexcept nogil:
    cdef uint64_t buddy_pfn = pfn ^ (<uint64_t>1 << order)
    if buddy_pfn < z.start_pfn or buddy_pfn >= z.start_pfn + z.spanned_pages:
        return False
    return is_free_block(p + <int64_t>(buddy_pfn - pfn), order)


cdef void free_one_page_locked(zone* z, page* p, uint64_t pfn, unsigned int order,
                               int migratetype, bint to_tail) noexcept nogil:
    if not to_tail and may_wait(z, p, pfn, order, migratetype):
        z.split_free = 1
        z.split_mask = z.area_mask[migratetype]
        # A larger block than its own halves: nobody without the lock looks for more.
        z.area_mask[migratetype] = z.split_mask | <uint16_t>(1 << z.split_from)
        z.free_pages += <int64_t>1 << order
        p.kind.word = PAGE_BUDDY | order << 8 | <uint32_t>z.split_type << 16
        return
    settle_locked(z)
    merge(z, p, pfn, order, migratetype, to_tail)


cdef void merge(zone* z, page* p, uint64_t pfn, unsigned int order, int migratetype,
                bint to_tail) noexcept nogil:
    cdef uint64_t end = z.start_pfn + z.spanned_pages
    cdef uint64_t buddy_pfn
    cdef page* buddy
    cdef int buddy_type
    z.free_pages += <int64_t>1 << order
    while order < MAX_PAGE_ORDER:
        buddy_pfn = pfn ^ (<uint64_t>1 << order)
        buddy = p + <int64_t>(buddy_pfn - pfn)
        if buddy_pfn < z.start_pfn or buddy_pfn >= end or not is_free_block(buddy, order):
            break
        buddy_type = buddy.kind.h.migratetype
        if unlikely(order >= PAGEBLOCK_ORDER) and buddy_type != migratetype:
            # Reserved and isolated pageblocks keep to themselves.
            if buddy_type >= MIGRATE_PCPTYPES or migratetype >= MIGRATE_PCPTYPES:
                break
            change_pageblock_range(z, buddy_pfn, order, migratetype)
        del_from_free_list(z, buddy, order, buddy_type)
        if buddy_pfn < pfn:
            p.kind.word = PAGE_TAIL
            p = buddy
            pfn = buddy_pfn
        order += 1
    if not to_tail:
        to_tail = buddy_merge_likely(z, p, pfn, order)
    add_to_free_list(z, p, order, migratetype, to_tail)


# When the block one order up has a free buddy, ours is likely to merge soon: it goes to
# the tail of its list, where it is not handed out at once.  Compare buddy_merge_likely().
cdef inline bint buddy_merge_likely(const zone* z, page* p, uint64_t pfn,
                                    unsigned int order) noexcept nogil:
    cdef uint64_t parent
    cdef uint64_t buddy_pfn
    if order >= MAX_PAGE_ORDER - 1:
        return False
    parent = pfn & ~(<uint64_t>1 << order)
    buddy_pfn = parent ^ (<uint64_t>2 << order)
    if buddy_pfn < z.start_pfn or buddy_pfn >= z.start_pfn + z.spanned_pages:
        return False
    return is_free_block(p + <int64_t>(buddy_pfn - pfn), order + 1)


cdef inline bint is_free_block(const page* p, unsigned int order) noexcept nogil:
    return (p.kind.word & 0xFFFF) == (PAGE_BUDDY | order << 8)


cdef inline void add_to_free_list(zone* z, page* p, unsigned int order, int migratetype,
                                  bint to_tail) noexcept nogil:
    cdef free_area* area = &z.free_area[order]
    VM_BUG_ON(p.kind.h.state != PAGE_TAIL, "a block that is listed is freed")
    p.kind.word = PAGE_BUDDY | order << 8 | <uint32_t>migratetype << 16
    if to_tail:
        list_add_tail(&p.lru, &area.free_list[migratetype])
    else:
        list_add(&p.lru, &area.free_list[migratetype])
    area.nr_free[migratetype] += 1
    if unlikely(migratetype == MIGRATE_HIGHATOMIC):
        z.nr_free_highatomic += <int64_t>1 << order
    z.area_mask[migratetype] |= <uint32_t>1 << order


cdef inline void del_from_free_list(zone* z, page* p, unsigned int order,
                                    int migratetype) noexcept nogil:
    cdef free_area* area = &z.free_area[order]
    list_del(&p.lru)
    p.kind.word = PAGE_TAIL
    area.nr_free[migratetype] -= 1
    if unlikely(migratetype == MIGRATE_HIGHATOMIC):
        z.nr_free_highatomic -= <int64_t>1 << order
    if list_empty(&area.free_list[migratetype]):
        z.area_mask[migratetype] &= ~(<uint32_t>1 << order)


cdef int get_pageblock_migratetype(const zone* z, uint64_t pfn) noexcept nogil:
    return z.pageblock[(pfn >> PAGEBLOCK_ORDER) - z.pageblock_start]


cdef inline void set_pageblock_migratetype(zone* z, uint64_t pfn, int migratetype) noexcept nogil:
    z.pageblock[(pfn >> PAGEBLOCK_ORDER) - z.pageblock_start] = <uint8_t>migratetype


cdef void change_pageblock_range(zone* z, uint64_t pfn, unsigned int order,
                                 int migratetype) noexcept nogil:
    cdef uint64_t end = pfn + (<uint64_t>1 << order)
    while pfn < end:
        set_pageblock_migratetype(z, pfn, migratetype)
        pfn += PAGEBLOCK_NR_PAGES


cdef void reserve_highatomic_pageblock(zone* z, page* p, unsigned int order) noexcept nogil:
    cdef int64_t most
    cdef uint64_t pfn = page_to_pfn(z.machine, p)
    cdef uint64_t start = pfn & ~<uint64_t>(PAGEBLOCK_NR_PAGES - 1)
    cdef int migratetype
    # About 1 % of the zone, and nothing on a zone of which that is no whole pageblock.
    if z.managed_pages / 100 < PAGEBLOCK_NR_PAGES:
        return
    most = ((z.managed_pages / 100 + PAGEBLOCK_NR_PAGES - 1)
            & ~<uint64_t>(PAGEBLOCK_NR_PAGES - 1))
    if z.nr_reserved_highatomic >= most:
        return
    spin_lock(&z.lock)
    settle_locked(z)
    migratetype = get_pageblock_migratetype(z, pfn)
    if z.nr_reserved_highatomic < most and migratetype < MIGRATE_PCPTYPES:
        if order >= PAGEBLOCK_ORDER:
            change_pageblock_range(z, pfn, order, MIGRATE_HIGHATOMIC)
            z.nr_reserved_highatomic += <int64_t>1 << order
        elif block_in_zone(z, start):
            take_back_at(z, start)
            move_freepages_block(z, start, MIGRATE_HIGHATOMIC)
            z.nr_reserved_highatomic += PAGEBLOCK_NR_PAGES
    spin_unlock(&z.lock)


cdef bint unreserve_highatomic_pageblock(zone* z, bint force) noexcept nogil:
    cdef unsigned int order
    cdef uint64_t pfn
    cdef page* p
    cdef bint done = False
    # One pageblock stays unless a request would fail otherwise.
    if not force and z.nr_reserved_highatomic <= PAGEBLOCK_NR_PAGES:
        return False
    spin_lock(&z.lock)
    settle_locked(z)
    for order in range(NR_PAGE_ORDERS):
        if z.area_mask[MIGRATE_HIGHATOMIC] >> order & 1:
            p = lru_to_page(z.free_area[order].free_list[MIGRATE_HIGHATOMIC].next)
            pfn = page_to_pfn(z.machine, p)
            if order > PAGEBLOCK_ORDER:     # several reserved pageblocks have merged
                del_from_free_list(z, p, order, MIGRATE_HIGHATOMIC)
                add_to_free_list(z, p, order, MIGRATE_UNMOVABLE, True)
                change_pageblock_range(z, pfn, order, MIGRATE_UNMOVABLE)
                z.nr_reserved_highatomic -= <int64_t>1 << order
            else:
                move_freepages_block(z, pfn & ~<uint64_t>(PAGEBLOCK_NR_PAGES - 1),
                                     MIGRATE_UNMOVABLE)
                z.nr_reserved_highatomic -= PAGEBLOCK_NR_PAGES
            done = True
            break
    spin_unlock(&z.lock)
    return done


cdef bint zone_watermark_ok(const zone* z, unsigned int order, uint64_t mark, int highest_zone,
                            unsigned int alloc_flags, int64_t free) noexcept nogil:
    cdef int64_t least = <int64_t>mark
    cdef uint32_t mask
    free -= (<int64_t>1 << order) - 1
    if alloc_flags & ALLOC_RESERVES:
        if alloc_flags & ALLOC_MIN_RESERVE:
            least -= least / 2
            if alloc_flags & ALLOC_NON_BLOCK:
                least -= least / 4
        if alloc_flags & ALLOC_OOM:
            least -= least / 2
    else:
        free -= z.nr_free_highatomic
    if free <= least + <int64_t>z.lowmem_reserve[highest_zone]:
        return False
    if order == 0:
        return True
    mask = z.area_mask[0] | z.area_mask[1] | z.area_mask[2]
    if alloc_flags & (ALLOC_HIGHATOMIC | ALLOC_OOM):
        mask |= z.area_mask[MIGRATE_HIGHATOMIC]
    return mask >> order != 0


cdef void init_zone(zone* z) noexcept nogil:
    cdef unsigned int order
    cdef int migratetype
    for order in range(NR_PAGE_ORDERS):
        for migratetype in range(MIGRATE_TYPES):
            list_init(&z.free_area[order].free_list[migratetype])
            z.free_area[order].nr_free[migratetype] = 0
    for migratetype in range(MIGRATE_TYPES):
        z.area_mask[migratetype] = 0
    z.free_pages = 0
    z.nr_free_highatomic = 0
    z.split = NULL
    z.split_free = 0
    z.runs = NULL
    z.last_run = NULL
    z.spare_runs = NULL
    z.run_pages = 0
    z.lock.locked = 0
    check_spinlock(z.machine, &z.lock, LOCK_ZONE, z.index)


cdef void free_boot_range(zone* z, uint64_t start_pfn, uint64_t end_pfn) noexcept nogil:
    cdef uint64_t pfn = start_pfn
    cdef unsigned int order
    spin_lock(&z.lock)
    while pfn < end_pfn:
        order = MAX_PAGE_ORDER
        if pfn != 0 and ctz(pfn) < order:
            order = ctz(pfn)
        while pfn + (<uint64_t>1 << order) > end_pfn:
            order -= 1
        free_one_page_locked(z, pfn_to_page(z.machine, pfn), pfn, order, MIGRATE_MOVABLE, True)
        pfn += <uint64_t>1 << order
    spin_unlock(&z.lock)
