# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Slabs: made of pages, filled and emptied, given back.
# Compare mm/slub.c (Linux 6.18).  Unlike there, a slab's free list is guarded by its node's
# lock: magazines and depots leave little to do here, and that a batch at a time.
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport free_pages
from realmem._kernel.slab_check cimport check_empty_slab, setup_slab_debug
from realmem._kernel.slab_types cimport (
    SLAB_DEBUG_FLAGS, SLAB_LIVE, kmem_cache, kmem_cache_node, list_to_slab, object_slab, slab,
    slab_address, slab_of,
)
from realmem.compiler cimport spin_lock, spin_unlock
from realmem.types cimport (
    GFP_COMP, GFP_DIRECT_RECLAIM, GFP_HARDWALL, GFP_HIGH, GFP_IO, GFP_FS, GFP_KSWAPD_RECLAIM,
    GFP_MEMALLOC, GFP_NOFAIL, GFP_NOMEMALLOC, GFP_NORETRY, GFP_NOWARN, GFP_RETRY_MAYFAIL,
    GFP_THISNODE, PG_slab, list_add, list_add_tail, list_del, list_empty, list_head, list_init,
    machine, page, page_zone,
)

cdef enum:
    # What a request for an object may say about pages (GFP_RECLAIM_MASK, GFP_CONSTRAINT_MASK).
    GFP_FOR_SLABS = (GFP_DIRECT_RECLAIM | GFP_KSWAPD_RECLAIM | GFP_HIGH | GFP_IO | GFP_FS
                     | GFP_NOWARN | GFP_RETRY_MAYFAIL | GFP_NOFAIL | GFP_NORETRY
                     | GFP_MEMALLOC | GFP_NOMEMALLOC | GFP_HARDWALL | GFP_THISNODE)
    GIVEN_SHIFT = 6             # bytes of slab_state.given a page
    NR_FULLNESS = 32            # SHRINK_PROMOTE_MAX


cdef inline void set_free_pointer(const kmem_cache* s, void* object, void* next) noexcept nogil:
    (<void**>(<char*>object + s.offset))[0] = next


cdef inline void* free_pointer(const kmem_cache* s, void* object) noexcept nogil:
    return (<void**>(<char*>object + s.offset))[0]


cdef kmem_cache_node* slab_node(const kmem_cache* s, const slab* sl) noexcept nogil:
    return s.nodes + page_zone(s.machine, <const page*>sl).nid


cdef slab* new_slab(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil:
    cdef slab* sl
    cdef char* object
    if s.python_ctor:
        return NULL
    sl = new_raw_slab(s, gfp, nid)
    if sl != NULL and s.ctor != NULL:
        object = <char*>slab_address(s.machine, sl) + s.red_left_pad
        for _ in range(sl.objects):
            s.ctor(object)
            object += s.size
    return sl


# Compare allocate_slab(): first of the order that wastes little, without trying hard; then
# of the least that holds an object.
cdef slab* new_raw_slab(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil:
    cdef machine* m = s.machine
    cdef uint32_t order = s.order
    cdef uint32_t first
    cdef page* p
    cdef slab* sl
    cdef uint32_t i
    gfp = (gfp & GFP_FOR_SLABS) | s.gfp | GFP_COMP
    first = (gfp | GFP_NOWARN | GFP_NORETRY) & ~<uint32_t>GFP_NOFAIL
    if first & GFP_DIRECT_RECLAIM and order > s.min_order:
        first = ((first | GFP_NOMEMALLOC)
                 & ~<uint32_t>(GFP_DIRECT_RECLAIM | GFP_KSWAPD_RECLAIM))
    p = alloc_pages_node(m, nid, first, order)
    if p == NULL:
        order = s.min_order
        p = alloc_pages_node(m, nid, gfp, order)
        if p == NULL:
            return NULL
    sl = <slab*>p
    sl.objects = <uint16_t>((<uint64_t>4096 << order) / s.size)
    sl.inuse = sl.objects
    sl.freelist = NULL
    sl.live = 0
    for i in range(<uint32_t>1 << order):
        (<slab*>(p + i)).cache = s
        (<slab*>(p + i)).magazine_back = s.magazine_back
        (p + i).flags |= <uint64_t>1 << PG_slab
    memset(slab_of(m).given + (<uint64_t>(p - m.vmemmap) << GIVEN_SHIFT), 0,
           <uint64_t>1 << (GIVEN_SHIFT + order))
    if s.flags & SLAB_DEBUG_FLAGS:
        setup_slab_debug(s, sl)
    return sl


cdef void publish_slab(kmem_cache* s, slab* sl, uint32_t taken) noexcept nogil:
    cdef kmem_cache_node* n = slab_node(s, sl)
    cdef char* base = <char*>slab_address(s.machine, sl) + s.red_left_pad
    cdef void* next = NULL
    cdef uint32_t i = sl.objects
    while i > taken:
        i -= 1
        set_free_pointer(s, base + <uint64_t>i * s.size, next)
        next = base + <uint64_t>i * s.size
    sl.freelist = next
    sl.inuse = <uint16_t>taken
    spin_lock(&n.list_lock)
    sl.live = SLAB_LIVE
    n.nr_slabs += 1
    n.total_objects += sl.objects
    if next != NULL:
        list_add_tail(&sl.list, &n.partial)
        n.nr_partial += 1
    spin_unlock(&n.list_lock)


cdef uint32_t take_objects(kmem_cache* s, kmem_cache_node* n, void** objects_ret,
                           uint32_t wanted) noexcept nogil:
    cdef uint32_t got = 0
    cdef uint32_t before
    cdef void* object
    cdef slab* sl
    if n.nr_partial == 0:           # a guess: a new slab costs little more than the lock
        return 0
    spin_lock(&n.list_lock)
    while got < wanted and not list_empty(&n.partial):
        sl = list_to_slab(n.partial.next)
        object = sl.freelist
        before = got
        while object != NULL and got < wanted:
            objects_ret[got] = object
            got += 1
            object = free_pointer(s, object)
        sl.freelist = object
        sl.inuse += <uint16_t>(got - before)
        if object == NULL:
            list_del(&sl.list)
            n.nr_partial -= 1
    spin_unlock(&n.list_lock)
    return got


cdef void put_objects(kmem_cache* s, void** objects, uint32_t count,
                      list_head* empty) noexcept nogil:
    cdef kmem_cache_node* n = NULL
    cdef kmem_cache_node* home
    cdef slab* sl
    cdef uint32_t i
    cdef bint was_full
    for i in range(count):
        sl = object_slab(s.machine, objects[i])
        home = slab_node(s, sl)
        if home != n:
            if n != NULL:
                spin_unlock(&n.list_lock)
            n = home
            spin_lock(&n.list_lock)
        was_full = sl.inuse == sl.objects
        if was_full:
            list_add_tail(&sl.list, &n.partial)
            n.nr_partial += 1
        set_free_pointer(s, objects[i], sl.freelist)
        sl.freelist = objects[i]
        sl.inuse -= 1
        # The count that decides is the one before this free, as in __slab_free().
        if (sl.inuse == 0 and empty != NULL
                and n.nr_partial - <uint64_t>was_full >= s.min_partial):
            remove_slab_locked(s, n, sl, empty)
    if n != NULL:
        spin_unlock(&n.list_lock)


# From here on the cache may be destroyed: the slab is discarded without a look at it.
cdef inline void remove_slab_locked(kmem_cache* s, kmem_cache_node* n, slab* sl,
                                    list_head* empty) noexcept nogil:
    if s.flags & SLAB_DEBUG_FLAGS:
        check_empty_slab(s, sl)
    list_del(&sl.list)
    list_add(&sl.list, empty)
    sl.live = 0
    n.nr_partial -= 1
    n.nr_slabs -= 1
    n.total_objects -= sl.objects


cdef void take_empty_slabs(kmem_cache* s, kmem_cache_node* n, bint all_of_them,
                           list_head* empty) noexcept nogil:
    cdef list_head* at
    cdef list_head* next
    spin_lock(&n.list_lock)
    at = n.partial.next
    while at != &n.partial:
        next = at.next
        if list_to_slab(at).inuse == 0 and (all_of_them or n.nr_partial > s.min_partial):
            remove_slab_locked(s, n, list_to_slab(at), empty)
        at = next
    spin_unlock(&n.list_lock)


cdef void sort_partial(kmem_cache* s, kmem_cache_node* n) noexcept nogil:
    cdef list_head by_free[32]      # NR_FULLNESS
    cdef list_head* at
    cdef list_head* next
    cdef slab* sl
    cdef int i
    for i in range(NR_FULLNESS):
        list_init(&by_free[i])
    spin_lock(&n.list_lock)
    at = n.partial.next
    while at != &n.partial:
        next = at.next
        sl = list_to_slab(at)
        i = sl.objects - sl.inuse - 1
        if i < NR_FULLNESS:
            list_del(at)
            list_add_tail(at, &by_free[i])
        at = next
    for i in range(NR_FULLNESS - 1, -1, -1):
        while not list_empty(&by_free[i]):
            at = by_free[i].prev
            list_del(at)
            list_add(at, &n.partial)
    spin_unlock(&n.list_lock)


cdef int64_t discard_slabs(machine* m, list_head* empty) noexcept nogil:
    cdef int64_t pages = 0
    cdef slab* sl
    while not list_empty(empty):
        sl = list_to_slab(empty.next)
        list_del(&sl.list)
        pages += <int64_t>1 << sl.kind.h.order
        discard_raw_slab(m, sl)
    return pages


cdef void discard_raw_slab(machine* m, slab* sl) noexcept nogil:
    cdef page* p = <page*>sl
    cdef unsigned int order = p.kind.h.order
    cdef uint32_t i
    for i in range(<uint32_t>1 << order):
        (<slab*>(p + i)).cache = NULL
        (<slab*>(p + i)).magazine_back = 0
        (p + i).flags &= ~(<uint64_t>1 << PG_slab)
    p.private = 0
    p.index = 0
    free_pages(m, p, order)
