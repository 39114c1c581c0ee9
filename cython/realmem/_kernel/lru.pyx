# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport int32_t, int64_t, uint64_t

from realmem._kernel.lock_order cimport LOCK_LRU, check_spinlock
from realmem._kernel.mm_types cimport (
    ANON_FLAGS, LRU_ACTIVE_ANON, LRU_INACTIVE_FILE, LRU_UNEVICTABLE, NR_LRU_LISTS, address_space,
    anon_vma, lruvec, mmu, vm_area_struct,
)
from realmem._kernel.percpu cimport area_enter, area_exit, freeze_cpu_areas, thaw_cpu_areas
from realmem._kernel.rmap cimport anon_vma_get
from realmem.compiler cimport (
    SEQ_CST, atomic64_add_return, atomic64_fetch_and, atomic64_fetch_or, atomic_add_return, load64,
    load_int, spin_lock, spin_unlock,
)
from realmem.types cimport (
    LRU_BATCH, PG_active, PG_anon, PG_anon_exclusive, PG_file, PG_lru, PG_referenced, PG_shmem,
    PG_swapcache, PG_unevictable, PG_young, cpu_area, list_add, list_del, list_init, lru_to_page,
    machine, page, page_zone,
)

cdef extern from *:
    """
    #define rm_try_cmpxchg(p, old, new) \
        __atomic_compare_exchange_n((p), (old), (new), 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)
    """
    bint atomic64_try_cmpxchg "rm_try_cmpxchg"(uint64_t* p, uint64_t* old,
                                               uint64_t new) noexcept nogil
    bint atomic_try_cmpxchg "rm_try_cmpxchg"(int32_t* p, int32_t* old, int32_t new) noexcept nogil

cdef enum:
    HELD = 1 << PG_anon | 1 << PG_shmem | 1 << PG_file
    PLACE = 1 << PG_active | 1 << PG_unevictable
    ONE_MAP = 0x100000000       # of page.counts
    MOST_SKIPPED = 1024         # pages looked at under the lock
    USE = 1 << PG_lru | PLACE | 1 << PG_referenced | 1 << PG_young


cdef void lru_init(mmu* u) noexcept nogil:
    cdef int nid, which
    u.m.mmu = u
    u.m.drain_lru = drain
    list_init(&u.shmem_swaplist)
    for nid in range(u.m.nr_nodes):
        check_spinlock(u.m, &u.lru[nid].lock, LOCK_LRU, nid)
        for which in range(NR_LRU_LISTS):
            list_init(&u.lru[nid].lists[which])


cdef inline lruvec* lruvec_of(mmu* u, const page* p) noexcept nogil:
    return &u.lru[page_zone(u.m, p).nid]


cdef inline int list_of(uint64_t flags, bint is_file) noexcept nogil:
    if flags & (1 << PG_unevictable):
        return LRU_UNEVICTABLE
    return (LRU_INACTIVE_FILE if is_file else 0) + (flags >> PG_active & 1)


# ---- entering ---------------------------------------------------------------

cdef void lru_add(mmu* u, page* p) noexcept nogil:
    cdef cpu_area* area = area_enter(u.m)
    area.lru_pages[area.nr_lru_pages] = p
    area.nr_lru_pages += 1
    if area.nr_lru_pages == LRU_BATCH:
        drain(u.m, area)
    area_exit(area)


cdef void lru_add_drain_all(mmu* u) noexcept nogil:
    cdef cpu_area* area
    freeze_cpu_areas(u.m)
    area = u.m.areas
    while area != NULL:
        drain(u.m, area)
        area = area.next
    thaw_cpu_areas(u.m)


# The caller is inside the area, or has stolen it.
cdef void drain(machine* m, cpu_area* area) noexcept nogil:
    cdef mmu* u = <mmu*>m.mmu
    cdef lruvec* held = NULL
    cdef page* p
    cdef int64_t i
    for i in range(area.nr_lru_pages):
        p = area.lru_pages[i]
        if lruvec_of(u, p) != held:
            if held != NULL:
                spin_unlock(&held.lock)
            held = lruvec_of(u, p)
            spin_lock(&held.lock)
        if enters(p):
            list_add(&p.lru, &held.lists[list_of(0, p.flags & (1 << PG_file) != 0)])
            held.nr[list_of(0, p.flags & (1 << PG_file) != 0)] += 1
    if held != NULL:
        spin_unlock(&held.lock)
    area.nr_lru_pages = 0


cdef inline bint enters(page* p) noexcept nogil:
    cdef uint64_t old = load64(&p.flags)
    while old & HELD and not old & (1 << PG_lru):
        if atomic64_try_cmpxchg(&p.flags, &old, (old & ~<uint64_t>USE) | 1 << PG_lru):
            return True
    return False


# ---- leaving, moving --------------------------------------------------------

cdef void lru_del(mmu* u, page* p, uint64_t was) noexcept nogil:
    cdef lruvec* vec = lruvec_of(u, p)
    spin_lock(&vec.lock)
    take_out(vec, p, was)
    spin_unlock(&vec.lock)


cdef inline void take_out(lruvec* vec, page* p, uint64_t was) noexcept nogil:
    list_del(&p.lru)
    vec.nr[list_of(load64(&p.flags), was & (1 << PG_file) != 0)] -= 1
    change(p, USE, 0)


cdef inline void change(page* p, uint64_t clear, uint64_t set) noexcept nogil:
    cdef uint64_t old = load64(&p.flags)
    while not atomic64_try_cmpxchg(&p.flags, &old, (old & ~clear) | set):
        pass


cdef void lru_set(mmu* u, page* p, uint64_t flags) noexcept nogil:
    cdef lruvec* vec = lruvec_of(u, p)
    cdef uint64_t now
    cdef bint is_file
    spin_lock(&vec.lock)
    now = load64(&p.flags)
    # One whose kind is gone is about to be taken out, from where its flags say that it is.
    if now & (1 << PG_lru) and now & HELD:
        is_file = now & (1 << PG_file) != 0
        list_del(&p.lru)
        vec.nr[list_of(now, is_file)] -= 1
        change(p, PLACE, flags & PLACE)
        list_add(&p.lru, &vec.lists[list_of(flags, is_file)])
        vec.nr[list_of(flags, is_file)] += 1
    spin_unlock(&vec.lock)


cdef bint lru_owned(mmu* u, page* p, const vm_area_struct* vma, uint64_t index) noexcept nogil:
    cdef lruvec* vec = lruvec_of(u, p)
    cdef int64_t now
    spin_lock(&vec.lock)
    atomic64_fetch_or(&p.flags, ANON_FLAGS & ~(1 << PG_anon_exclusive), SEQ_CST)
    p.index = index
    p.mapping = vma.anon_vma
    now = atomic64_add_return(<int64_t*>&p.counts.word, <int64_t>ONE_MAP, SEQ_CST)
    spin_unlock(&vec.lock)
    return now >> 32 == 0


cdef void lru_disowned(mmu* u, page* p) noexcept nogil:
    cdef lruvec* vec = lruvec_of(u, p)
    cdef uint64_t was
    spin_lock(&vec.lock)
    if <int64_t>load64(&p.counts.word) >> 32 == -1:     # else somebody mapped it meanwhile
        if not load64(&p.flags) & (1 << PG_swapcache):
            was = atomic64_fetch_and(&p.flags, ~<uint64_t>ANON_FLAGS, SEQ_CST)
            if was & (1 << PG_lru):
                take_out(vec, p, was)
        p.mapping = NULL
    spin_unlock(&vec.lock)


# ---- looking ----------------------------------------------------------------

cdef int64_t lru_oldest(mmu* u, int nid, int which, int highest, lru_hint* hints_ret,
                        int64_t n) noexcept nogil:
    cdef lruvec* vec = &u.lru[nid]
    cdef int64_t found = 0, left
    cdef page* p
    spin_lock(&vec.lock)
    left = min(vec.nr[which], <int64_t>MOST_SKIPPED)
    while left > 0 and found < n:
        left -= 1
        p = lru_to_page(vec.lists[which].prev)
        list_del(&p.lru)
        list_add(&p.lru, &vec.lists[which])
        if page_zone(u.m, p).kind > highest:
            continue
        hints_ret[found].page = p
        hints_ret[found].object = NULL
        hints_ret[found].anon = NULL
        hints_ret[found].index = p.index
        # What has PG_lru and another of LRU_HELD cannot lose its owner, nor can that go, before
        # it was taken out, or disowned.
        if load64(&p.flags) & (1 << PG_file | 1 << PG_shmem):
            if not lru_keep(<address_space*>p.mapping):
                continue
            hints_ret[found].object = <address_space*>p.mapping
        elif which > LRU_ACTIVE_ANON or not load64(&p.flags) & (1 << PG_anon):
            continue
        elif p.mapping != NULL:
            hints_ret[found].anon = <anon_vma*>p.mapping
            anon_vma_get(hints_ret[found].anon)
        found += 1
    spin_unlock(&vec.lock)
    return found


# A file is Python's, which waits until nobody has borrowed it; other objects live by references,
# and one whose last one went is about to go.
cdef bint lru_keep(address_space* object) noexcept nogil:
    cdef int32_t old
    if object.is_file:
        atomic_add_return(&object.borrowed, 1, SEQ_CST)
        return True
    old = load_int(<int*>&object.refcount)
    while old > 0:
        if atomic_try_cmpxchg(&object.refcount, &old, old + 1):
            return True
    return False
