# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The life of caches.  Compare mm/slab_common.c, mm/slub.c (Linux 6.18).
from libc.errno cimport EBUSY, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.lock_order cimport LOCK_DEPOT, LOCK_SLABS, LOCK_SLAB_STATE, check_spinlock
from realmem._kernel.percpu cimport (
    area_enter, area_exit, attach_areas, freeze_cpu_areas, set_slab_hooks, thaw_cpu_areas,
)
from realmem._kernel.slab_check cimport check_valid_pointer
from realmem._kernel.slab_log cimport slab_log_exit
from realmem._kernel.slab_pages cimport (
    discard_slabs, put_objects, slab_node, sort_partial, take_empty_slabs,
)
from realmem._kernel.slab_types cimport (
    MAGAZINE_BYTES, NO_MAGAZINE, NR_MAGAZINES, SLAB_DEBUG_FLAGS, area_magazine, is_slab,
    kmem_cache, kmem_cache_node, list_to_slab, magazine, magazine_count, object_page,
    object_slab, slab, slab_address, slab_of, slab_state,
)
from realmem.compiler cimport spin_lock, spin_unlock
from realmem.linux cimport (
    MADV_DONTFORK, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE,
    madvise, mmap, munmap,
)
from realmem.types cimport (
    AREA_MAGAZINES, FAST_FOR_NOBODY, INJECT_SLAB, MACHINE_INJECT_SLAB, cpu_area, list_head,
    list_init, machine,
)


cdef void* zeroed(uint64_t bytes) noexcept nogil:
    cdef void* where = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if where == MAP_FAILED:
        return NULL
    madvise(where, bytes, MADV_DONTFORK)
    return where


cdef int slab_init(machine* m) noexcept nogil:
    cdef slab_state* state = <slab_state*>zeroed(sizeof(slab_state))
    if state == NULL:
        return -ENOMEM
    state.machine = m
    check_spinlock(m, &state.lock, LOCK_SLAB_STATE)
    m.objects_fast = m if m.nr_nodes == 1 else <machine*>FAST_FOR_NOBODY
    m.shrink_objects = shrink_all_caches
    state.given_bytes = (m.max_pfn << 6) + 64
    state.given = <unsigned char*>zeroed(state.given_bytes)
    if state.given == NULL:
        munmap(state, sizeof(slab_state))
        return -ENOMEM
    state.slots[NO_MAGAZINE] = 1
    m.slab = state
    return 0


cdef void slab_exit(machine* m) noexcept nogil:
    cdef slab_state* state = slab_of(m)
    cdef kmem_cache* s
    if state == NULL:
        return
    s = state.caches
    while s != NULL:
        state.caches = s.next
        free_cache(s)
        s = state.caches
    m.slab = NULL
    m.shrink_objects = NULL
    slab_log_exit(state)
    munmap(state.given, state.given_bytes)
    munmap(state, sizeof(slab_state))


cdef kmem_cache* new_cache(machine* m) noexcept nogil:
    cdef uint64_t bytes = sizeof(kmem_cache) + m.nr_nodes * sizeof(kmem_cache_node)
    cdef kmem_cache* s = <kmem_cache*>zeroed(bytes)
    cdef int nid
    if s == NULL:
        return NULL
    s.machine = m
    s.fast_for = m.objects_fast
    s.bytes = bytes
    s.nodes = <kmem_cache_node*>(s + 1)
    for nid in range(m.nr_nodes):
        s.nodes[nid].nid = nid
        check_spinlock(m, &s.nodes[nid].depot_lock, LOCK_DEPOT)
        check_spinlock(m, &s.nodes[nid].list_lock, LOCK_SLABS)
        list_init(&s.nodes[nid].partial)
        list_init(&s.nodes[nid].full)
    return s


cdef void free_cache(kmem_cache* s) noexcept nogil:
    munmap(s, s.bytes)


cdef void add_cache(kmem_cache* s, int slot) noexcept nogil:
    cdef slab_state* state = slab_of(s.machine)
    cdef int i
    spin_lock(&state.lock)
    if slot < 0 and s.flags & SLAB_DEBUG_FLAGS:
        slot = NO_MAGAZINE
    if slot < 0:
        slot = NO_MAGAZINE
        for i in range(NR_MAGAZINES - 1, 0, -1):        # the low ones are kmalloc's
            if not state.slots[i]:
                slot = i
                break
    state.slots[slot] = 1
    # The fast path of kmalloc() looks at the slot of a size, whoever has it: nobody else may.
    if s.flags & SLAB_DEBUG_FLAGS:
        slot = NO_MAGAZINE
        state.nr_debugged += 1
    s.slot = slot
    if slot == NO_MAGAZINE:
        s.capacity = 0
    s.magazine_back = AREA_MAGAZINES - slot * MAGAZINE_BYTES
    s.next = state.caches
    state.caches = s
    spin_unlock(&state.lock)


# ---- calling objects in -----------------------------------------------------

# Empty one thread's magazine.  Slabs that become empty stay where they are.
# Preconditions: inside the area, or it is stolen.
cdef void flush_magazine(kmem_cache* s, cpu_area* area) noexcept nogil:
    cdef magazine* mag
    if s.slot == NO_MAGAZINE:
        return
    mag = area_magazine(area, s.magazine_back)
    put_objects(s, mag.slots, magazine_count(mag), NULL)
    put_objects(s, mag.remote, mag.nr_remote, NULL)
    mag.top = 0
    mag.nr_remote = 0


# ... all of them.  The hook of area_set_cpu(), for a thread that comes to another node.
cdef void flush_area(machine* m, cpu_area* area) noexcept nogil:
    cdef slab_state* state = slab_of(m)
    cdef kmem_cache* s
    if state == NULL:
        return
    spin_lock(&state.lock)
    s = state.caches
    while s != NULL:
        flush_magazine(s, area)
        s = s.next
    spin_unlock(&state.lock)


cdef void flush_depots(kmem_cache* s) noexcept nogil:
    cdef kmem_cache_node* n
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        n = s.nodes + nid
        spin_lock(&n.depot_lock)
        put_objects(s, n.depot, n.depot_n, NULL)
        n.depot_n = 0
        spin_unlock(&n.depot_lock)


cdef void take_all_empty(kmem_cache* s, bint all_of_them, list_head* empty) noexcept nogil:
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        take_empty_slabs(s, s.nodes + nid, all_of_them, empty)


# A thread ends: its objects go back.  It may still allocate and free pages here.
cdef void leave_thread(machine* m, cpu_area* area) noexcept nogil:
    cdef slab_state* state = slab_of(m)
    cdef kmem_cache* s
    cdef list_head empty
    if state == NULL:
        return
    list_init(&empty)
    area_enter(m)
    flush_area(m, area)
    spin_lock(&state.lock)
    s = state.caches
    while s != NULL:
        take_all_empty(s, False, &empty)
        s = s.next
    spin_unlock(&state.lock)
    area_exit(area)
    discard_slabs(m, &empty)


cdef int64_t shrink_cache(kmem_cache* s) noexcept nogil:
    cdef cpu_area* area
    cdef list_head empty
    cdef int nid
    list_init(&empty)
    freeze_cpu_areas(s.machine)
    area = s.machine.areas
    while area != NULL:
        flush_magazine(s, area)
        area = area.next
    thaw_cpu_areas(s.machine)
    flush_depots(s)
    take_all_empty(s, True, &empty)
    for nid in range(s.machine.nr_nodes):
        sort_partial(s, s.nodes + nid)
    return discard_slabs(s.machine, &empty)


cdef int64_t shrink_all_caches(machine* m) noexcept nogil:
    cdef slab_state* state = slab_of(m)
    cdef cpu_area* area
    cdef kmem_cache* s
    cdef list_head empty
    list_init(&empty)
    freeze_cpu_areas(m)
    area = m.areas
    while area != NULL:
        flush_area(m, area)
        area = area.next
    thaw_cpu_areas(m)
    spin_lock(&state.lock)
    s = state.caches
    while s != NULL:
        flush_depots(s)
        take_all_empty(s, True, &empty)
        s = s.next
    spin_unlock(&state.lock)
    return discard_slabs(m, &empty)


cdef void update_fast_objects(machine* m) noexcept nogil:
    cdef kmem_cache* s
    freeze_cpu_areas(m)
    m.options &= ~<uint32_t>MACHINE_INJECT_SLAB
    if m.faults[INJECT_SLAB].active:
        m.options |= MACHINE_INJECT_SLAB
    m.objects_fast = m
    if m.nr_nodes > 1 or m.options & MACHINE_INJECT_SLAB:
        m.objects_fast = <machine*>FAST_FOR_NOBODY
    s = slab_of(m).caches
    while s != NULL:
        s.fast_for = m.objects_fast
        s = s.next
    thaw_cpu_areas(m)


cdef int remove_cache(kmem_cache* s) noexcept nogil:
    cdef slab_state* state = slab_of(s.machine)
    cdef kmem_cache** link
    cdef int nid
    cdef cpu_area* area
    shrink_cache(s)
    for nid in range(s.machine.nr_nodes):
        if s.nodes[nid].nr_slabs:
            return -EBUSY
    # The next cache of the slot may have another capacity.
    if s.slot != NO_MAGAZINE:
        freeze_cpu_areas(s.machine)
        area = s.machine.areas
        while area != NULL:
            area_magazine(area, s.magazine_back).end = 0
            area = area.next
        thaw_cpu_areas(s.machine)
    spin_lock(&state.lock)
    link = &state.caches
    while link[0] != s:
        link = &link[0].next
    link[0] = s.next
    if s.slot != NO_MAGAZINE:
        state.slots[s.slot] = 0
    if s.flags & SLAB_DEBUG_FLAGS:
        state.nr_debugged -= 1
    spin_unlock(&state.lock)
    return 0


# ---- counting ---------------------------------------------------------------

cdef void stat_cache(kmem_cache* s, cache_stat* ret) noexcept nogil:
    cdef cache_stat one
    cdef int nid
    ret.active_objs = 0
    ret.num_objs = 0
    ret.num_slabs = 0
    ret.nr_partial = 0
    ret.partial_objs = 0
    for nid in range(s.machine.nr_nodes):
        stat_cache_node(s, nid, &one)
        ret.active_objs += one.active_objs
        ret.num_objs += one.num_objs
        ret.num_slabs += one.num_slabs
        ret.nr_partial += one.nr_partial
        ret.partial_objs += one.partial_objs


# Compare get_slabinfo(): what is free is what partial slabs have free.
cdef void stat_cache_node(kmem_cache* s, int nid, cache_stat* ret) noexcept nogil:
    cdef kmem_cache_node* n = s.nodes + nid
    cdef list_head* at
    cdef int64_t free = 0
    ret.partial_objs = 0
    spin_lock(&n.list_lock)
    at = n.partial.next
    while at != &n.partial:
        ret.partial_objs += list_to_slab(at).inuse
        free += list_to_slab(at).objects - list_to_slab(at).inuse
        at = at.next
    ret.num_objs = n.total_objects
    ret.num_slabs = n.nr_slabs
    ret.nr_partial = <int64_t>n.nr_partial
    spin_unlock(&n.list_lock)
    ret.active_objs = ret.num_objs - free


# ---- judging ----------------------------------------------------------------

cdef int find_object(machine* m, uint64_t addr) noexcept nogil:
    cdef slab* sl
    cdef kmem_cache* s
    cdef kmem_cache_node* n
    cdef cpu_area* area
    cdef magazine* mag
    cdef uint64_t at
    cdef bint free = False
    cdef void* object = <void*>addr
    if not is_slab(object_page(m, object)):
        return OBJECT_NONE
    sl = object_slab(m, object)
    s = sl.cache
    at = addr - <uint64_t>slab_address(m, sl) - s.red_left_pad
    if at % s.size or at / s.size >= sl.objects:
        return OBJECT_INSIDE
    freeze_cpu_areas(m)
    if s.slot != NO_MAGAZINE:
        area = m.areas
        while area != NULL:
            mag = area_magazine(area, s.magazine_back)
            free = (free or holds(mag.slots, magazine_count(mag), object)
                    or holds(mag.remote, mag.nr_remote, object))
            area = area.next
    n = slab_node(s, sl)
    spin_lock(&n.depot_lock)
    free = free or holds(n.depot, n.depot_n, object)
    spin_lock(&n.list_lock)
    free = free or on_freelist(s, sl, object)
    spin_unlock(&n.list_lock)
    spin_unlock(&n.depot_lock)
    thaw_cpu_areas(m)
    return OBJECT_FREE if free else OBJECT_USED


cdef bint holds(void** objects, uint32_t count, const void* object) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if objects[i] == object:
            return True
    return False


cdef bint on_freelist(const kmem_cache* s, const slab* sl, const void* object) noexcept nogil:
    cdef void* at = sl.freelist
    cdef uint32_t left = sl.objects     # a corrupted list may be a ring
    while at != NULL and left and check_valid_pointer(s, sl, at):
        if at == object:
            return True
        at = (<void**>(<char*>at + s.offset))[0]
        left -= 1
    return False


set_slab_hooks(flush_area, leave_thread)
attach_areas()
