# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# What a run has left is in no free list, but free: PAGE_TAIL each, counted in zone.free_pages and
# zone.run_pages.  A frame that was given out is any frame: freed, it goes to a per-CPU list.
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from realmem._kernel.buddy cimport free_one_page_locked, rmqueue_own_locked, take_back_run
from realmem.compiler cimport VM_BUG_ON, ctz, peek64, spin_lock, spin_unlock
from realmem.types cimport (
    HPAGE_PMD_ORDER, MAX_NR_ZONES, MIGRATE_MOVABLE, PAGEBLOCK_ORDER, WMARK_HIGH, ZONE_MOVABLE,
    page_to_pfn, page_zone,
)

cdef enum: ROOM_SHIFT = 3       # a zone's share that stays outside of runs


cdef page_run* run_reserve(machine* m, int nid) noexcept nogil:
    cdef zone* z = m.zonelists[nid * 2 * MAX_NR_ZONES + ZONE_MOVABLE][0]
    cdef page_run* run
    cdef page* p = NULL
    if z == NULL or not has_plenty(z):
        return NULL
    spin_lock(&z.lock)
    run = take_record(z)
    if run != NULL:
        # At no moment are there fewer free pages: who looks does not lock.
        z.free_pages += RUN_PAGES
        p = rmqueue_own_locked(z, HPAGE_PMD_ORDER, MIGRATE_MOVABLE)
        if p == NULL:
            z.free_pages -= RUN_PAGES
            put_record(run)
            run = NULL
        else:
            run.pfn = page_to_pfn(m, p)
            run.unused = RUN_PAGES
            memset(run.used, 0, sizeof(run.used))
            memset(run.mapped, 0, sizeof(run.mapped))
            run.registered = 0
            z.run_pages += RUN_PAGES
            z.run_at[(run.pfn >> PAGEBLOCK_ORDER) - z.pageblock_start] = run
            link(run)
    spin_unlock(&z.lock)
    return run


# Blocks as large, and so much outside of runs that none is to be taken back soon.
cdef bint has_plenty(zone* z) noexcept nogil:
    return z.area_mask[MIGRATE_MOVABLE] >> HPAGE_PMD_ORDER != 0 and (
        peek64(&z.free_pages) - peek64(&z.run_pages) - z.nr_free_highatomic
        > <int64_t>(z.watermark[WMARK_HIGH] + z.lowmem_reserve[ZONE_MOVABLE]
                    + (z.managed_pages >> ROOM_SHIFT) + RUN_PAGES))


cdef page* run_take(page_run* run, unsigned int i, unsigned int order) noexcept nogil:
    cdef zone* z = run.z
    cdef page* p = NULL
    cdef int64_t n = <int64_t>1 << order
    if not all_unused(run, i, order):
        return NULL
    spin_lock(&z.lock)
    if run.unused > 0:
        p = pfn_to_page(z.machine, run.pfn + i)
        set_used(run, i, order)
        run.unused -= n
        z.free_pages -= n
        z.run_pages -= n
        if run.unused == 0:
            unlink(run)
    spin_unlock(&z.lock)
    return p


cdef void run_end(page_run* run) noexcept nogil:
    cdef zone* z = run.z
    spin_lock(&z.lock)
    if run.unused > 0:
        take_back(z, run)
    put_record(run)
    spin_unlock(&z.lock)


# Preconditions: z.lock held; it has frames left.
cdef void take_back(zone* z, page_run* run) noexcept nogil:
    cdef unsigned int i = 0
    cdef unsigned int order
    cdef uint64_t pfn
    unlink(run)
    z.run_pages -= run.unused
    run.unused = 0
    while next_block(run, &i, &order):
        pfn = run.pfn + i
        free_one_page_locked(z, pfn_to_page(z.machine, pfn), pfn, order,
                             z.pageblock[(pfn >> PAGEBLOCK_ORDER) - z.pageblock_start], False)
        z.free_pages -= <int64_t>1 << order     # it counted as free already
        i += 1 << order


# The largest block from frame i_ref[0] on that was not given out; False at the end.
cdef bint next_block(const page_run* run, unsigned int* i_ref,
                     unsigned int* order_ret) noexcept nogil:
    cdef unsigned int i = i_ref[0]
    cdef unsigned int order
    while i < RUN_PAGES and run_bit(run.used, i):
        i += 1
    if i >= RUN_PAGES:
        return False
    order = HPAGE_PMD_ORDER if i == 0 else ctz(i)
    while not all_unused(run, i, order):
        order -= 1
    i_ref[0] = i
    order_ret[0] = order
    return True


cdef inline void set_used(page_run* run, unsigned int i, unsigned int order) noexcept nogil:
    cdef unsigned int word
    if order < 6:
        run.used[i >> 6] |= ((<uint64_t>1 << (1 << order)) - 1) << (i & 63)
        return
    for word in range(i >> 6, (i + (1 << order)) >> 6):
        run.used[word] = ~<uint64_t>0


cdef inline bint all_unused(const page_run* run, unsigned int i,
                            unsigned int order) noexcept nogil:
    cdef unsigned int word
    if order < 6:
        return run.used[i >> 6] >> (i & 63) & ((<uint64_t>1 << (1 << order)) - 1) == 0
    for word in range(i >> 6, (i + (1 << order)) >> 6):
        if run.used[word] != 0:
            return False
    return True


cdef void add_run_blocks(const zone* z, int64_t (*counts_ref)[5]) noexcept nogil:
    cdef const page_run* run = z.runs
    cdef unsigned int i, order
    while run != NULL:
        i = 0
        while next_block(run, &i, &order):
            counts_ref[order][z.pageblock[(run.pfn >> PAGEBLOCK_ORDER) - z.pageblock_start]] += 1
            i += 1 << order
        run = run.next


cdef bint is_in_run(const machine* m, uint64_t pfn) noexcept nogil:
    cdef const zone* z = page_zone(m, pfn_to_page(m, pfn))
    cdef const page_run* run = z.run_at[(pfn >> PAGEBLOCK_ORDER) - z.pageblock_start]
    return run != NULL and run.unused > 0 and not run_bit(run.used, pfn & (RUN_PAGES - 1))


# ---- records ----------------------------------------------------------------

cdef page_run* take_record(zone* z) noexcept nogil:
    cdef page_run* run = z.spare_runs
    if run != NULL:
        z.spare_runs = run.next
    elif z.fresh_runs < z.end_of_runs:
        run = z.fresh_runs
        run.z = z
        z.fresh_runs += 1
    return run


cdef void put_record(page_run* run) noexcept nogil:
    run.next = run.z.spare_runs
    run.z.spare_runs = run


cdef void link(page_run* run) noexcept nogil:
    cdef zone* z = run.z
    run.next = NULL
    run.prev = z.last_run
    if z.last_run != NULL:
        z.last_run.next = run
    else:
        z.runs = run
    z.last_run = run


# It has no frames left, or not for long.
cdef void unlink(page_run* run) noexcept nogil:
    cdef zone* z = run.z
    VM_BUG_ON(z.run_at[(run.pfn >> PAGEBLOCK_ORDER) - z.pageblock_start] != run,
              "a pageblock is of another run")
    z.run_at[(run.pfn >> PAGEBLOCK_ORDER) - z.pageblock_start] = NULL
    if run.prev != NULL:
        run.prev.next = run.next
    else:
        z.runs = run.next
    if run.next != NULL:
        run.next.prev = run.prev
    else:
        z.last_run = run.prev


take_back_run = take_back
