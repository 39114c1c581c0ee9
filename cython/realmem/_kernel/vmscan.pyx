# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# A page is looked at by its reverse map, and by nothing that it says itself: under the lock of an
# address space whose entry maps it, it is what it is.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.address_space cimport TAKE_CLEAN, mapping_drop, mapping_put, mapping_walk
from realmem._kernel.filemap cimport filemap_write_back
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.lru cimport lru_add_drain_all, lru_hint, lru_keep, lru_oldest, lru_set
from realmem._kernel.mm_lock cimport lock_live
from realmem._kernel.mm_types cimport (
    LRU_ACTIVE_ANON, LRU_ACTIVE_FILE, LRU_INACTIVE_ANON, LRU_INACTIVE_FILE, PTE_ACCESSED,
    PTE_DIRTY, PTE_SOFT_DIRTY, PTE_SPECIAL, PTE_SWP_EXCLUSIVE, PTE_SWP_SOFT_DIRTY, VM_LOCKED,
    address_space, is_pinned, mm_struct, mmu, pinned_page, pte_pfn, pte_present,
    update_hiwater_rss, vma_slot,
)
from realmem._kernel.page_free cimport get_page, put_page
from realmem._kernel.percpu cimport (
    area_enter, area_exit, count_vm_event, this_node,
)
from realmem._kernel.pcp cimport drain_area
from realmem._kernel.pgtable cimport (
    PTES_READ, clear_pte_locked, is_huge_locked, pte_cursor, pte_first, pte_next,
    pte_offset_locked, set_pte_locked, split_huge_locked,
)
from realmem._kernel.radix_tree cimport radix_load
from realmem._kernel.rmap cimport (
    anon_vma_get, anon_vma_put, rmap_anon_places, rmap_place,
)
from realmem._kernel.shmem cimport shmem_swap_out
from realmem._kernel.swap cimport (
    get_nr_swap_pages, swap_cache_add, swap_cache_grab, swap_duplicate, swap_free, swap_out,
)
from realmem._kernel.tlb cimport tlb_flush_locked
from realmem._kernel.vmaindex cimport vma_find
from realmem._kernel.zap cimport page_mapcount, page_remove_rmap
from realmem.compiler cimport (
    SEQ_CST, atomic64_add_return, atomic64_fetch_and, atomic64_fetch_or, atomic_add_return, load64,
)
from realmem.types cimport (
    ALLOCSTALL, MAX_NR_ZONES, PAGE_SIZE, PGACTIVATE, PGDEACTIVATE, PGLAZYFREED,
    PGREFILL, PGSCAN_ANON, PGSCAN_FILE, PGSCAN_KSWAPD, PGSTEAL_ANON, PGSTEAL_FILE,
    PGSTEAL_KSWAPD, PG_active, PG_anon, PG_anon_exclusive, PG_dirty, PG_referenced,
    PG_swapbacked, PG_unevictable, PG_young, ZONE_NORMAL, cpu_area, machine, page,
    pfn_to_page, zone,
)

cdef enum:
    SWAP_CLUSTER_MAX = 32       # pages that are looked for at least
    HINTS = 16                  # ... and at a time: stacks are small
    PLACES = 8
    DEF_PRIORITY = 12
    AROUND = 65536              # bytes whose entries are looked at together
    MAX_TURNS = 16              # tries of a fault while something comes of it

# What becomes of a page.
cdef enum:
    KEEP = 0                    # it stays where it is
    ACTIVATE = 1
    CULL = 2                    # locked: to the unevictable ones
    FREED = 3

cdef struct scan_control:
    mmu* u
    int who                     # BY_KSWAPD, BY_DIRECT
    int highest                 # kind of zone whose pages serve; those of higher ones are skipped
    int64_t want
    int64_t reclaimed
    int64_t scanned


cdef void vmscan_init(mmu* u) noexcept nogil:
    u.m.reclaim = direct_reclaim


cdef void vmscan_exit(mmu* u) noexcept nogil:
    u.m.reclaim = NULL


# ---- who asks ---------------------------------------------------------------

# An allocation outside all locks.  Mirrors: try_to_free_pages().
cdef int64_t direct_reclaim(machine* m, zone* preferred, uint32_t gfp,
                            unsigned int order) noexcept nogil:
    return reclaim_pages(<mmu*>m.mmu, preferred.nid, SWAP_CLUSTER_MAX, BY_DIRECT, preferred.kind)


cdef void reclaim_begins(mmu* u) noexcept nogil:
    atomic64_add_return(&u.reclaimers, 1, SEQ_CST)


cdef void reclaim_ends(mmu* u) noexcept nogil:
    atomic64_add_return(&u.reclaimers, -1, SEQ_CST)


cdef bint reclaim_for_fault(mmu* u, int turn) noexcept nogil:
    if turn == MAX_TURNS:
        return False
    count_vm_event(u.m, ALLOCSTALL + ZONE_NORMAL, 1)
    return reclaim_pages(u, -1, SWAP_CLUSTER_MAX, BY_DIRECT, MAX_NR_ZONES) > 0


cdef int64_t reclaim_pages(mmu* u, int nid, int64_t want, int who, int highest) noexcept nogil:
    cdef scan_control sc
    cdef zone** zonelist
    cdef int priority = DEF_PRIORITY
    cdef int last, i
    sc.u = u
    sc.who = who
    sc.want = want
    sc.highest = highest
    sc.reclaimed = sc.scanned = 0
    if not may_find_any(u):
        return 0
    lru_add_drain_all(u)
    while priority >= 0 and sc.reclaimed < want:
        if nid >= 0:
            shrink_node(&sc, nid, priority)
        else:
            zonelist = u.m.zonelists[this_node(u.m) * 2 * MAX_NR_ZONES + MAX_NR_ZONES - 1]
            last = -1
            i = 0
            while zonelist[i] != NULL and sc.reclaimed < want:
                if zonelist[i].nid != last:
                    last = zonelist[i].nid
                    shrink_node(&sc, last, priority)
                i += 1
        priority -= 1
    give_back(u.m)
    if who == BY_KSWAPD:
        u.kswapd[nid].pages_scanned += sc.scanned
    elif sc.reclaimed > 0:
        forgive_kswapds(u)
    return sc.reclaimed


# What somebody else could take, they can, too.
cdef void forgive_kswapds(mmu* u) noexcept nogil:
    cdef int nid
    for nid in range(u.m.nr_nodes):
        u.kswapd[nid].failures = 0


# Whether any list has what could be taken.
cdef bint may_find_any(mmu* u) noexcept nogil:
    cdef int nid
    cdef bint anon = get_nr_swap_pages(u)
    for nid in range(u.m.nr_nodes):
        if u.lru[nid].nr[LRU_INACTIVE_FILE] + u.lru[nid].nr[LRU_ACTIVE_FILE] > 0:
            return True
    return anon or u.nr_file > 0


# What this thread freed lies on its own lists, where nobody else finds it.
cdef void give_back(machine* m) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    drain_area(m, area)
    area_exit(area)


# ---- lists ------------------------------------------------------------------

# Mirrors: shrink_node() => shrink_lruvec(), get_scan_count().
cdef void shrink_node(scan_control* sc, int nid, int priority) noexcept nogil:
    cdef int64_t* nr = sc.u.lru[nid].nr
    cdef int64_t file = nr[LRU_INACTIVE_FILE] + nr[LRU_ACTIVE_FILE]
    cdef int64_t anon = nr[LRU_INACTIVE_ANON] + nr[LRU_ACTIVE_ANON]
    cdef int64_t weight = sc.u.swappiness
    if not get_nr_swap_pages(sc.u):
        anon = 0
    # Without swappiness only when nothing else is left.
    if weight == 0 and file > 0 and priority > 0:
        anon = 0
    if file > 0 and anon > 0:
        anon = max(anon * weight // 100, <int64_t>1)
        file = max(file * (200 - weight) // 100, <int64_t>1)
    shrink_kind(sc, nid, LRU_INACTIVE_FILE, scan_size(file, priority))
    if sc.reclaimed < sc.want:
        shrink_kind(sc, nid, LRU_INACTIVE_ANON, scan_size(anon, priority))


cdef inline int64_t scan_size(int64_t pages, int priority) noexcept nogil:
    return 0 if pages == 0 else max(pages >> priority, <int64_t>SWAP_CLUSTER_MAX)


cdef void shrink_kind(scan_control* sc, int nid, int which, int64_t nr_to_scan) noexcept nogil:
    cdef lru_hint hints[HINTS]
    cdef int64_t n, i
    while nr_to_scan > 0 and sc.reclaimed < sc.want:
        if inactive_is_low(sc.u, nid, which):
            shrink_active(sc, nid, which + 1)
        n = lru_oldest(sc.u, nid, which, sc.highest, hints, min(nr_to_scan, <int64_t>HINTS))
        if n == 0:
            break
        nr_to_scan -= n
        for i in range(n):
            look_at(sc, &hints[i])


# Mirrors: inactive_is_low().
cdef bint inactive_is_low(mmu* u, int nid, int which) noexcept nogil:
    cdef int64_t inactive = u.lru[nid].nr[which]
    cdef int64_t active = u.lru[nid].nr[which + 1]
    cdef int64_t gb = (inactive + active) >> 18
    cdef int64_t ratio = 1
    while (ratio + 1) * (ratio + 1) <= 10 * gb:
        ratio += 1
    return inactive * ratio < active


# What was active longest becomes inactive, its use until now forgotten.
# Mirrors: shrink_active_list().
cdef void shrink_active(scan_control* sc, int nid, int which) noexcept nogil:
    cdef lru_hint hints[HINTS]
    cdef int64_t n = lru_oldest(sc.u, nid, which, sc.highest, hints, HINTS)
    cdef int64_t i
    count_vm_event(sc.u.m, PGREFILL, n)
    for i in range(n):
        if hints[i].object == NULL:
            anon_references(sc.u, &hints[i])
        else:
            object_references(sc.u, &hints[i])
        atomic64_fetch_and(&hints[i].page.flags, ~(<uint64_t>1 << PG_referenced), SEQ_CST)
        lru_set(sc.u, hints[i].page, 0)
        let_go(sc.u, &hints[i])
    count_vm_event(sc.u.m, PGDEACTIVATE, n)


# Mirrors: shrink_folio_list(), for one.
cdef void look_at(scan_control* sc, lru_hint* hint) noexcept nogil:
    cdef bint is_file = hint.object != NULL and hint.object.is_file
    cdef int what
    count_vm_event(sc.u.m, PGSCAN_KSWAPD + sc.who, 1)
    count_vm_event(sc.u.m, PGSCAN_FILE if is_file else PGSCAN_ANON, 1)
    sc.scanned += 1
    what = (reclaim_anon(sc.u, hint, False) if hint.object == NULL
            else reclaim_object(sc.u, hint, False))
    if what == FREED:
        sc.reclaimed += 1
        count_vm_event(sc.u.m, PGSTEAL_KSWAPD + sc.who, 1)
        count_vm_event(sc.u.m, PGSTEAL_FILE if is_file else PGSTEAL_ANON, 1)
    elif what == ACTIVATE:
        count_vm_event(sc.u.m, PGACTIVATE, 1)
        lru_set(sc.u, hint.page, <uint64_t>1 << PG_active)
    elif what == CULL:
        lru_set(sc.u, hint.page, <uint64_t>1 << PG_unevictable)
    let_go(sc.u, hint)


# Context: no lock is held.
cdef void let_go(mmu* u, const lru_hint* hint) noexcept nogil:
    if hint.anon != NULL:
        anon_vma_put(u, hint.anon)
    if hint.object != NULL and hint.object.is_file:
        atomic_add_return(&hint.object.borrowed, -1, SEQ_CST)
    elif hint.object != NULL:
        mapping_put(hint.object)


# Whether a page's uses since it was last looked at make it worth keeping.
# Mirrors: folio_check_references().
cdef inline int after_use(page* p, int references, bint is_file) noexcept nogil:
    cdef uint64_t was
    if references == 0:
        return FREED
    was = atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_referenced, SEQ_CST)
    if was & (1 << PG_referenced) or references > 1:
        return ACTIVATE
    return KEEP


# ---- anonymous pages --------------------------------------------------------

# The entry that maps the page there, of an address space that is locked now, or NULL and none is.
cdef uint64_t* lock_place(mmu* u, const rmap_place* place, const page* p,
                          vma_slot** slot_ret) noexcept nogil:
    cdef mm_struct* mm = place.mm
    cdef uint64_t* pte
    if not lock_live(mm, place.mm_id):
        return NULL
    pte = pte_offset_locked(mm, place.address)
    # What is mapped stays what it is; it may have become another's since it was on its list.
    if pte != NULL and pte_present(pte[0]) and not pte[0] & PTE_SPECIAL and (
            pfn_to_page(u.m, pte_pfn(pte[0])) == p) and p.flags & (1 << PG_anon):
        slot_ret[0] = vma_find(&mm.vmas, place.address)
        return pte
    mutex_unlock(&mm.lock)
    return NULL


# How many of its mappings were used since this was last asked; CULLED: it may not go at all.
cdef enum: CULLED = -1
cdef int anon_references(mmu* u, const lru_hint* hint) noexcept nogil:
    cdef rmap_place places[PLACES]
    cdef page* p = hint.page
    cdef int64_t i, n = PLACES if hint.anon != NULL else 0, skip = 0
    cdef int used = atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_young),
                                       SEQ_CST) >> PG_young & 1
    cdef vma_slot* slot = NULL
    cdef uint64_t* pte
    while n == PLACES and used >= 0:
        n = rmap_anon_places(u, hint.anon, hint.index, places, skip, PLACES)
        skip += n
        for i in range(n):
            pte = lock_place(u, &places[i], p, &slot)
            if pte == NULL:
                continue
            if slot.vma.vm_flags & VM_LOCKED:
                used = CULLED
            elif pte[0] & PTE_ACCESSED:
                used += 1
                forget_use(places[i].mm, slot, places[i].address)
            mutex_unlock(&places[i].mm.lock)
            if used < 0:
                break
    return used


# Have the next use of a page and its neighbours be noticed: the host has them mapped no more.
# Neighbours that were used are noted as young.  (Compare lru_gen_look_around().)
cdef void forget_use(mm_struct* mm, const vma_slot* slot, uint64_t addr) noexcept nogil:
    cdef uint64_t start = max(addr & ~<uint64_t>(AROUND - 1), slot.start)
    cdef uint64_t end = min((addr & ~<uint64_t>(AROUND - 1)) + AROUND, slot.end)
    cdef pte_cursor c
    cdef uint64_t* pte
    cdef page* p
    # What is pinned keeps what the host has mapped, and counts as used for so long.
    if is_pinned(mm, start, end):
        if is_pinned(mm, addr, addr + PAGE_SIZE):
            return
        start = addr
        end = addr + PAGE_SIZE
    if is_huge_locked(mm, addr):
        split_huge_locked(mm, addr)
    tlb_flush_locked(mm, start, end)
    pte = pte_first(&c, mm, start, end, PTES_READ)
    while pte != NULL:
        if pte_present(pte[0]) and pte[0] & PTE_ACCESSED and not pte[0] & PTE_SPECIAL:
            pte[0] &= ~<uint64_t>PTE_ACCESSED
            if c.addr != addr:
                p = pfn_to_page(mm.mmu.m, pte_pfn(pte[0]))
                atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_young, SEQ_CST)
        pte = pte_next(&c)


# Take the page from all who map it, to a swap area; `mine`: whatever its use.
cdef int reclaim_anon(mmu* u, const lru_hint* hint, bint mine) noexcept nogil:
    cdef rmap_place places[PLACES]
    cdef page* p = hint.page
    cdef int64_t i, n = PLACES if hint.anon != NULL else 0, skip = 0
    cdef uint64_t entry = 0
    cdef int what = KEEP
    cdef int references
    if not mine:
        references = anon_references(u, hint)
        if references == CULLED:
            return CULL
        what = after_use(p, references, False)
        if what != FREED:
            return what
    what = KEEP
    while n == PLACES:
        # Places that were dealt with are still found.
        n = rmap_anon_places(u, hint.anon, hint.index, places, skip, PLACES)
        skip += n
        for i in range(n):
            what = unmap_anon(u, &places[i], p, mine, &entry, what)
    if entry == 0 and page_mapcount(p) == 0:
        # Only the cache has it: it was read ahead, or could not be written the last time.
        entry = swap_cache_grab(u, p)
    if entry == 0:
        return what
    # Where it could not be taken from all, what was taken comes back from the cache.
    if load64(&p.counts.word) >> 32 == <uint32_t>-1:
        return FREED if swap_out(u, p, entry) else KEEP
    swap_free(u, entry)
    put_page(u.m, p)
    return KEEP


cdef int unmap_anon(mmu* u, const rmap_place* place, page* p, bint mine, uint64_t* entry_ref,
                    int what) noexcept nogil:
    cdef mm_struct* mm = place.mm
    cdef vma_slot* slot = NULL
    cdef uint64_t* pte = lock_place(u, place, p, &slot)
    cdef uint64_t old, swapped
    if pte == NULL:
        return what
    if (slot.vma.vm_flags & VM_LOCKED or pinned_page(mm, pte[0])
            or is_pinned(mm, place.address, place.address + PAGE_SIZE)
            or (pte[0] & PTE_ACCESSED and not mine)):
        mutex_unlock(&mm.lock)
        return ACTIVATE
    if is_huge_locked(mm, place.address):
        split_huge_locked(mm, place.address)
    # Whose bytes nobody wants any more.  Mirrors: try_to_unmap_one(), of lazyfree folios.
    if not p.flags & (1 << PG_swapbacked) and not pte[0] & PTE_DIRTY and page_mapcount(p) == 1:
        tlb_flush_locked(mm, place.address, place.address + PAGE_SIZE)
        update_hiwater_rss(mm)
        clear_pte_locked(mm, pte)
        page_remove_rmap(mm, p)
        count_vm_event(u.m, PGLAZYFREED, 1)
        mutex_unlock(&mm.lock)
        return FREED
    if entry_ref[0] == 0:
        entry_ref[0] = swap_cache_add(u, p)
        if entry_ref[0] == 0:
            mutex_unlock(&mm.lock)
            return ACTIVATE
        get_page(p)
    if not p.flags & (1 << PG_swapbacked):
        atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_swapbacked, SEQ_CST)
    tlb_flush_locked(mm, place.address, place.address + PAGE_SIZE)
    old = pte[0]
    swapped = entry_ref[0]
    if p.flags & (1 << PG_anon_exclusive):
        swapped |= PTE_SWP_EXCLUSIVE
        atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_anon_exclusive), SEQ_CST)
    if old & PTE_SOFT_DIRTY:
        swapped |= PTE_SWP_SOFT_DIRTY
    swap_duplicate(u, entry_ref[0])
    update_hiwater_rss(mm)
    set_pte_locked(mm, pte, swapped)
    mm.core.swap_ents += 1
    page_remove_rmap(mm, p)
    mutex_unlock(&mm.lock)
    return what


# ---- pages of files and of shared memory ------------------------------------

cdef struct object_use:
    mmu* u
    page* page
    int used
    bint mine

cdef int object_references(mmu* u, const lru_hint* hint) noexcept nogil:
    cdef object_use found
    found.u = u
    found.page = hint.page
    found.used = atomic64_fetch_and(&hint.page.flags, ~(<uint64_t>1 << PG_young),
                                    SEQ_CST) >> PG_young & 1
    if page_mapcount(hint.page) > 0:
        mapping_walk(hint.object, hint.index, hint.index, see_use, &found)
    return found.used


# The entry by which an address space, which is locked, maps the page there, or NULL.
cdef uint64_t* entry_of(mm_struct* mm, const address_space* object, const page* p, uint64_t addr,
                        vma_slot** slot_ret) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(mm, addr)
    slot_ret[0] = vma_find(&mm.vmas, addr)
    if (pte == NULL or slot_ret[0] == NULL or addr < slot_ret[0].start or not pte_present(pte[0])
            or pte[0] & PTE_SPECIAL or pfn_to_page(mm.mmu.m, pte_pfn(pte[0])) != p
            or p.mapping != object):
        return NULL
    return pte


cdef void see_use(mm_struct* mm, address_space* object, uint64_t start, uint64_t end,
                  void* data) noexcept nogil:
    cdef object_use* found = <object_use*>data
    cdef vma_slot* slot = NULL
    cdef uint64_t* pte = entry_of(mm, object, found.page, start, &slot)
    if pte == NULL:
        return
    if slot.vma.vm_flags & VM_LOCKED:
        found.used = CULLED
    elif pte[0] & PTE_ACCESSED and found.used >= 0:
        found.used += 1
        forget_use(mm, slot, start)


cdef int reclaim_object(mmu* u, const lru_hint* hint, bint mine) noexcept nogil:
    cdef int references
    cdef int what
    if not mine:
        references = object_references(u, hint)
        if references == CULLED:
            return CULL
        what = after_use(hint.page, references, hint.object.is_file)
        if what != FREED:
            return what
    return reclaim_file(u, hint) if hint.object.is_file else reclaim_shmem(u, hint, mine)


cdef int reclaim_file(mmu* u, const lru_hint* hint) noexcept nogil:
    cdef page* p = hint.page
    cdef address_space* object = hint.object
    cdef bint is_there, is_dirty
    mutex_lock(&object.lock)
    is_there = radix_load(object.root, hint.index) == p
    is_dirty = is_there and p.flags & (1 << PG_dirty) != 0
    mutex_unlock(&object.lock)
    if not is_there:
        return KEEP
    if is_dirty and filemap_write_back(object, hint.index, hint.index) != 0:
        return ACTIVATE             # it cannot be written; later, perhaps
    mapping_drop(object, hint.index, hint.index, TAKE_CLEAN)
    mutex_lock(&object.lock)
    is_there = radix_load(object.root, hint.index) == p
    mutex_unlock(&object.lock)
    return KEEP if is_there else FREED


cdef int reclaim_shmem(mmu* u, const lru_hint* hint, bint mine) noexcept nogil:
    cdef object_use found
    # Who asks for the page itself has it unmapped all the same, as in Linux.
    if not mine and not get_nr_swap_pages(u):
        return ACTIVATE
    found.u = u
    found.page = hint.page
    found.used = 0
    found.mine = mine
    if page_mapcount(hint.page) > 0:
        mapping_walk(hint.object, hint.index, hint.index, unmap_shmem, &found)
    if found.used != 0:
        return ACTIVATE
    return FREED if shmem_swap_out(hint.object, hint.index, hint.page) else KEEP


cdef void unmap_shmem(mm_struct* mm, address_space* object, uint64_t start, uint64_t end,
                      void* data) noexcept nogil:
    cdef object_use* found = <object_use*>data
    cdef vma_slot* slot = NULL
    cdef uint64_t* pte = entry_of(mm, object, found.page, start, &slot)
    if pte == NULL:
        return
    if (slot.vma.vm_flags & VM_LOCKED or pinned_page(mm, pte[0])
            or is_pinned(mm, start, start + PAGE_SIZE)
            or (pte[0] & PTE_ACCESSED and not found.mine)):
        found.used = 1
        return
    tlb_flush_locked(mm, start, start + PAGE_SIZE)
    update_hiwater_rss(mm)
    clear_pte_locked(mm, pte)
    page_remove_rmap(mm, found.page)


# ---- MADV_PAGEOUT -----------------------------------------------------------

cdef int64_t reclaim_range(mm_struct* mm, uint64_t id, uint64_t start,
                           uint64_t end) noexcept nogil:
    cdef lru_hint hints[HINTS]
    cdef pte_cursor c
    cdef vma_slot* slot
    cdef uint64_t* pte
    cdef uint64_t addr = start
    cdef int64_t freed = 0
    cdef mmu* u
    cdef page* p
    cdef int i, n = HINTS
    while n == HINTS:
        n = 0
        if not lock_live(mm, id):
            break
        u = mm.mmu
        reclaim_begins(u)
        pte = pte_first(&c, mm, addr, end, PTES_READ)
        while pte != NULL and n < HINTS:
            if pte_present(pte[0]) and not pte[0] & PTE_SPECIAL:
                p = pfn_to_page(u.m, pte_pfn(pte[0]))
                # What others use, too, is theirs to page out.
                if page_mapcount(p) == 1:
                    slot = vma_find(&mm.vmas, c.addr)
                    hints[n].page = p
                    hints[n].index = p.index
                    hints[n].anon = NULL
                    hints[n].object = NULL
                    if p.flags & (1 << PG_anon):
                        hints[n].anon = slot.vma.anon_vma
                        anon_vma_get(hints[n].anon)
                        n += 1
                    elif lru_keep(slot.vma.vm_object):
                        hints[n].object = slot.vma.vm_object
                        n += 1
            addr = c.addr + PAGE_SIZE
            pte = pte_next(&c)
        mutex_unlock(&mm.lock)
        for i in range(n):
            if hints[i].object == NULL:
                freed += reclaim_anon(u, &hints[i], True) == FREED
            else:
                freed += reclaim_object(u, &hints[i], True) == FREED
            let_go(u, &hints[i])
        reclaim_ends(u)
    return freed
