# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.lru cimport lru_add, lru_disowned
from realmem._kernel.mm_types cimport ANON_FLAGS, MAX_SWAPFILES, mmu, swap_info_struct
from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport get_page, put_page
from realmem._kernel.percpu cimport count_vm_event
from realmem.compiler cimport (
    SEQ_CST, VM_BUG_ON, atomic64_fetch_and, atomic64_fetch_or, load64,
)
from realmem.types cimport (
    GFP_DIRECT_RECLAIM, GFP_FAULT, GFP_KSWAPD_RECLAIM, GFP_NOMEMALLOC, GFP_NOWARN,
    PG_anon_exclusive, PG_dirty, PG_locked, PG_swapcache, PSWPIN, PSWPOUT, page,
    page_address,
)

cdef enum:
    AHEAD_GFP = ((GFP_FAULT | GFP_NOMEMALLOC | GFP_NOWARN)
                 & ~(GFP_DIRECT_RECLAIM | GFP_KSWAPD_RECLAIM))
    TYPE_BITS = 27              # page.slab_word: the slot, and above it the type
    # page.counts of one that only the cache and who asks refer to.
    NOBODY_ELSE = 2
    MOST_AHEAD = 9              # whatever vm.page-cluster asks for
cdef extern from *:
    const uint64_t NOT_MAPPED "0xFFFFFFFF00000000ULL"


cdef inline swap_info_struct* area_of(mmu* u, uint64_t entry) noexcept nogil:
    return &u.swap[swp_type(entry)]


cdef bint get_nr_swap_pages(const mmu* u) noexcept nogil:
    return u.nr_swap_pages > 0


# ---- slots ------------------------------------------------------------------

# The area to use next: of the highest priority that has room, those alike in turn.
# Mirrors: swap_alloc_slow(), which rotates plist entries.
cdef swap_info_struct* pick_area_locked(mmu* u) noexcept nogil:
    cdef swap_info_struct* best = NULL
    cdef swap_info_struct* si
    cdef int i, type
    for i in range(1, MAX_SWAPFILES + 1):
        type = (u.swap_turn + i) % MAX_SWAPFILES
        si = &u.swap[type]
        if si.used and si.writable and si.inuse + 1 < si.max and (
                best == NULL or si.prio > best.prio):
            best = si
    if best != NULL:
        u.swap_turn = <int>(best - u.swap)
    return best


# A free slot behind the last one that was taken, so that what goes together lies together.
cdef uint64_t take_slot_locked(swap_info_struct* si) noexcept nogil:
    cdef uint64_t slot = si.hand
    while True:
        slot = slot + 1 if slot + 1 < si.max else 1
        if si.map[slot] == 0:
            break
    si.hand = slot
    si.inuse += 1
    return slot


# An entry that one refers to, or 0.
cdef uint64_t take_entry_locked(mmu* u) noexcept nogil:
    cdef swap_info_struct* si = pick_area_locked(u)
    cdef uint64_t slot
    if si == NULL:
        return 0
    slot = take_slot_locked(si)
    u.nr_swap_pages -= 1
    si.map[slot] = 1
    return swp_entry(<int>(si - u.swap), slot)


cdef uint64_t swap_alloc(mmu* u) noexcept nogil:
    cdef uint64_t entry
    mutex_lock(&u.swap_lock)
    entry = take_entry_locked(u)
    mutex_unlock(&u.swap_lock)
    return entry


cdef uint64_t swap_cache_add(mmu* u, page* p) noexcept nogil:
    cdef uint64_t entry
    mutex_lock(&u.swap_lock)
    if load64(&p.flags) & (1 << PG_swapcache):
        entry = entry_of(p)
        area_of(u, entry).map[swp_offset(entry)] += 1
    else:
        entry = take_entry_locked(u)
        if entry != 0:
            enter_locked(u, area_of(u, entry), swp_offset(entry), p, entry)
            atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_dirty, SEQ_CST)
            get_page(p)
    mutex_unlock(&u.swap_lock)
    return entry


cdef inline uint64_t entry_of(const page* p) noexcept nogil:
    return swp_entry(<int>(p.slab_word >> TYPE_BITS),
                     p.slab_word & ((<uint32_t>1 << TYPE_BITS) - 1))


# The caller gives the cache its reference.
cdef void enter_locked(mmu* u, swap_info_struct* si, uint64_t slot, page* p,
                       uint64_t entry) noexcept nogil:
    p.slab_word = <uint32_t>swp_type(entry) << TYPE_BITS | <uint32_t>slot
    si.cache[slot] = p
    u.nr_swapcache += 1
    atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_swapcache, SEQ_CST)


# The page is as any other from now on, or nobody's.  Returns its reference, to be dropped
# without the lock.
cdef page* leave_locked(mmu* u, swap_info_struct* si, uint64_t slot) noexcept nogil:
    cdef page* p = si.cache[slot]
    if p == NULL:
        return NULL
    si.cache[slot] = NULL
    u.nr_swapcache -= 1
    p.slab_word = 0
    atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_swapcache | <uint64_t>1 << PG_dirty), SEQ_CST)
    lru_disowned(u, p)
    return p


cdef void swap_duplicate(mmu* u, uint64_t entry) noexcept nogil:
    mutex_lock(&u.swap_lock)
    area_of(u, entry).map[swp_offset(entry)] += 1
    mutex_unlock(&u.swap_lock)


cdef void swap_free(mmu* u, uint64_t entry) noexcept nogil:
    cdef page* p
    mutex_lock(&u.swap_lock)
    p = drop_locked(u, area_of(u, entry), swp_offset(entry))
    mutex_unlock(&u.swap_lock)
    if p != NULL:
        put_page(u.m, p)


# One who refers to the slot less.  Returns what to drop without the lock.
cdef page* drop_locked(mmu* u, swap_info_struct* si, uint64_t slot) noexcept nogil:
    VM_BUG_ON(si.map[slot] == 0, "a swap slot is freed that nobody has")
    si.map[slot] -= 1
    if si.map[slot] != 0:
        return NULL
    si.inuse -= 1
    u.nr_swap_pages += si.writable != 0
    return leave_locked(u, si, slot)


cdef uint32_t swap_count(mmu* u, uint64_t entry) noexcept nogil:
    cdef uint32_t n
    mutex_lock(&u.swap_lock)
    n = area_of(u, entry).map[swp_offset(entry)]
    mutex_unlock(&u.swap_lock)
    return n


# ---- the cache --------------------------------------------------------------

cdef page* swap_cache_get(mmu* u, uint64_t entry) noexcept nogil:
    cdef page* p
    mutex_lock(&u.swap_lock)
    p = area_of(u, entry).cache[swp_offset(entry)]
    if p != NULL:
        get_page(p)
    mutex_unlock(&u.swap_lock)
    return p


cdef page* swap_cache_put(mmu* u, uint64_t entry, page* new) noexcept nogil:
    cdef swap_info_struct* si = area_of(u, entry)
    cdef page* p
    mutex_lock(&u.swap_lock)
    p = si.cache[swp_offset(entry)]
    if p == NULL:
        p = new
        enter_locked(u, si, swp_offset(entry), p, entry)
        # Lists hold it although nobody maps it, and has no owner yet.
        atomic64_fetch_or(&p.flags, ANON_FLAGS & ~(1 << PG_anon_exclusive), SEQ_CST)
        lru_add(u, p)
    get_page(p)
    mutex_unlock(&u.swap_lock)
    if p != new:
        put_page(u.m, new)
    return p


cdef void swap_cache_fill(mmu* u, uint64_t entry, int nid) noexcept nogil:
    cdef swap_info_struct* si = area_of(u, entry)
    cdef uint64_t slot = swp_offset(entry)
    cdef page* p
    cdef bint wanted
    mutex_lock(&u.swap_lock)
    wanted = slot < si.max and si.map[slot] != 0 and si.cache[slot] == NULL
    si.map[slot] += wanted
    mutex_unlock(&u.swap_lock)
    if not wanted:
        return
    p = alloc_pages_node(u.m, nid, AHEAD_GFP, 0)
    if p != NULL and swap_read(u, entry, p) == 0:
        p = swap_cache_put(u, entry, p)
    if p != NULL:
        put_page(u.m, p)
    swap_free(u, entry)


# Mirrors: mm/swap_state.c:swap_cluster_readahead().
cdef void swap_read_ahead(mmu* u, uint64_t entry, int nid) noexcept nogil:
    cdef uint64_t pages = <uint64_t>1 << min(u.page_cluster, MOST_AHEAD)
    cdef uint64_t first = swp_offset(entry) & ~(pages - 1)
    cdef uint64_t slot
    for slot in range(first, first + pages):
        if slot != swp_offset(entry):
            swap_cache_fill(u, swp_entry(swp_type(entry), slot), nid)


cdef uint64_t swap_cache_grab(mmu* u, page* p) noexcept nogil:
    cdef uint64_t entry = 0
    mutex_lock(&u.swap_lock)
    # Under the lock what says so is there: it leaves before its frame is freed.
    if load64(&p.flags) & (1 << PG_swapcache):
        entry = entry_of(p)
        area_of(u, entry).map[swp_offset(entry)] += 1
        get_page(p)
    mutex_unlock(&u.swap_lock)
    return entry


# ---- moving pages -----------------------------------------------------------

cdef void swap_cache_dirty(mmu* u, page* p) noexcept nogil:
    mutex_lock(&u.swap_lock)
    if load64(&p.flags) & (1 << PG_swapcache):
        atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_dirty, SEQ_CST)
    mutex_unlock(&u.swap_lock)


cdef bint swap_out(mmu* u, page* p, uint64_t entry) noexcept nogil:
    cdef swap_info_struct* si = area_of(u, entry)
    cdef uint64_t slot = swp_offset(entry)
    cdef page* cached = NULL
    cdef uint64_t was = 0
    cdef bint mine, gone
    cdef int rc = 0
    mutex_lock(&u.swap_lock)
    # One writes it at a time.  Who maps it as its own from here on makes it dirty again.
    mine = (load64(&p.counts.word) >= NOT_MAPPED and not load64(&p.flags) & (1 << PG_locked)
            and si.cache[slot] == p)
    if mine:
        was = atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_dirty), SEQ_CST)
        atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_locked, SEQ_CST)
    mutex_unlock(&u.swap_lock)
    if was & (1 << PG_dirty):       # else it is what was read from there
        rc = swap_write(u, entry, p)
    mutex_lock(&u.swap_lock)
    if mine:
        atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_locked), SEQ_CST)
        if rc != 0 and si.cache[slot] == p:
            atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_dirty, SEQ_CST)
    gone = (mine and not load64(&p.flags) & (1 << PG_dirty) and si.cache[slot] == p
            and load64(&p.counts.word) == (NOT_MAPPED | NOBODY_ELSE))
    if gone:
        cached = leave_locked(u, si, slot)
        put_page(u.m, cached)       # not the last one: ours is
    cached = drop_locked(u, si, slot)
    gone = gone or (cached != NULL and load64(&p.counts.word) >= NOT_MAPPED)
    mutex_unlock(&u.swap_lock)
    put_page(u.m, p)
    if cached != NULL:
        put_page(u.m, cached)
    return gone


cdef int swap_write(mmu* u, uint64_t entry, const page* p) noexcept nogil:
    cdef swap_info_struct* si = area_of(u, entry)
    cdef int rc = si.store.write(si.store.data, swp_offset(entry), <void*>page_address(u.m, p))
    if rc == 0:
        count_vm_event(u.m, PSWPOUT, 1)
    return rc


cdef int swap_read(mmu* u, uint64_t entry, page* p) noexcept nogil:
    cdef swap_info_struct* si = area_of(u, entry)
    cdef int rc = si.store.read(si.store.data, swp_offset(entry), <void*>page_address(u.m, p))
    if rc == 0:
        count_vm_event(u.m, PSWPIN, 1)
    return rc


cdef bint swap_is_only(mmu* u, uint64_t entry, const page* p) noexcept nogil:
    return load64(<uint64_t*>&p.counts.word) >= NOT_MAPPED and swap_count(u, entry) == 1
