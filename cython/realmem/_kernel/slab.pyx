# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Allocating and freeing objects.
#
# The fast paths are leaves that work on the calling thread's own magazine (slab_types.pxd);
# area.fast says both that the area is the cache's machine's and that nobody has stolen it
# (types.pxd: cpu_area).  Everything else leaves by a pointer, lest it be inlined.  They are bound
# by how soon a load sees the store before it: hence one word, top, and no other state.
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from realmem._kernel.fault_inject cimport should_fail
from realmem._kernel.percpu cimport (
    area_enter, area_exit, area_set_cpu, attach_areas, current_area,
)
from realmem._kernel.slab_debug cimport debug_alloc, debug_free, slab_user
from realmem._kernel.slab_pages cimport (
    discard_slabs, new_slab, publish_slab, put_objects, take_objects,
)
from realmem._kernel.slab_types cimport (
    REMOTE_SLOTS, SLAB_DEBUG_FLAGS, area_magazine, is_local, kmem_cache, kmem_cache_node,
    last_slot, magazine, magazine_count, object_page, slab, slab_address,
)
from realmem.compiler cimport (
    barrier, cpu_hint, likely, poke_int, return_address, spin_lock, spin_unlock,
    this_cpu_id, unlikely,
)
from realmem.types cimport (
    GFP_DIRECT_RECLAIM, GFP_NOFAIL, GFP_NOWARN, GFP_THISNODE, GFP_ZERO, INJECT_SLAB,
    MACHINE_INJECT_SLAB, cpu_area, list_empty, list_head, list_init, machine, page_zone,
)

cdef void* (*alloc_slowly)(kmem_cache* s, uint32_t gfp) noexcept nogil
cdef void (*free_slowly)(kmem_cache* s, void* object) noexcept nogil


cdef void* kmem_cache_alloc(kmem_cache* s, uint32_t gfp) noexcept nogil:
    cdef cpu_area* area = current_area()
    cdef magazine* mag
    cdef uint64_t top
    cdef void* object
    poke_int(&area.busy, 1)
    barrier()
    if likely(area.fast == s.fast_for and not gfp & GFP_ZERO):
        mag = area_magazine(area, s.magazine_back)
        top = mag.top
        object = last_slot(mag, top)[0]
        if likely(object != NULL):
            mag.top = top - sizeof(void*)
            barrier()
            poke_int(&area.busy, 0)
            return object
    poke_int(&area.busy, 0)
    return alloc_slowly(s, gfp)


cdef void kmem_cache_free(kmem_cache* s, void* object) noexcept nogil:
    cdef cpu_area* area = current_area()
    cdef magazine* mag
    cdef uint64_t top
    poke_int(&area.busy, 1)
    barrier()
    if likely(area.fast == s.fast_for):
        mag = area_magazine(area, s.magazine_back)
        top = mag.top
        if likely(top < mag.end):
            last_slot(mag, top)[1] = object
            mag.top = top + sizeof(void*)
            barrier()
            poke_int(&area.busy, 0)
            return
    poke_int(&area.busy, 0)
    free_slowly(s, object)


# The same where memory has nodes: objects are those of the node that the thread runs on.
cdef void* alloc_on_node(kmem_cache* s, uint32_t gfp) noexcept nogil:
    cdef cpu_area* area = current_area()
    cdef magazine* mag
    cdef uint64_t top
    cdef void* object
    if unlikely(s.machine.options & MACHINE_INJECT_SLAB) and should_failslab(s.machine, gfp):
        return NULL
    poke_int(&area.busy, 1)
    barrier()
    if likely(area.fast == s.machine and area.cpu == cpu_hint() and not gfp & GFP_ZERO):
        mag = area_magazine(area, s.magazine_back)
        top = mag.top
        object = last_slot(mag, top)[0]
        if likely(object != NULL):
            mag.top = top - sizeof(void*)
            barrier()
            poke_int(&area.busy, 0)
            return object
    poke_int(&area.busy, 0)
    return slab_alloc_slow(s, gfp, -1)


cdef void free_on_node(kmem_cache* s, void* object) noexcept nogil:
    cdef cpu_area* area = current_area()
    cdef magazine* mag
    cdef uint64_t top
    poke_int(&area.busy, 1)
    barrier()
    if likely(area.fast == s.machine and area.cpu == cpu_hint() and is_local(area, object)):
        mag = area_magazine(area, s.magazine_back)
        top = mag.top
        if likely(top < mag.end):
            last_slot(mag, top)[1] = object
            mag.top = top + sizeof(void*)
            barrier()
            poke_int(&area.busy, 0)
            return
    poke_int(&area.busy, 0)
    slab_free_slow(s, object)


cdef void* kmem_cache_alloc_node(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil:
    cdef cpu_area* area = current_area()
    if nid < 0 or (area.fast == s.machine and area.cpu == cpu_hint() and nid == area.mem_nid):
        return kmem_cache_alloc(s, gfp)
    if unlikely(s.machine.options & MACHINE_INJECT_SLAB) and should_failslab(s.machine, gfp):
        return NULL
    return slab_alloc_slow(s, gfp, nid)


# Compare mm/failslab.c:should_failslab(); here requests that may sleep fail too.
cdef bint should_failslab(machine* m, uint32_t gfp) noexcept nogil:
    return not gfp & GFP_NOFAIL and should_fail(&m.faults[INJECT_SLAB])


# ---- slow paths -------------------------------------------------------------

# Begin working on the area's magazine of s, for the node that the thread runs on now.
cdef inline magazine* magazine_enter(kmem_cache* s, cpu_area** area_ret) noexcept nogil:
    cdef cpu_area* area = area_enter(s.machine)
    cdef magazine* mag = area_magazine(area, s.magazine_back)
    if unlikely(this_cpu_id() != area.cpu):
        area_set_cpu(area)
    if unlikely(mag.end == 0):
        mag.end = s.capacity * sizeof(void*)    # stays 0 for caches without magazines
    area_ret[0] = area
    return mag


cdef void* slab_alloc_slow(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil:
    cdef cpu_area* area
    cdef magazine* mag
    cdef void* object = NULL
    if s.flags & SLAB_DEBUG_FLAGS:
        return alloc_debugged(s, gfp, nid)
    mag = magazine_enter(s, &area)
    if mag.end != 0 and (nid < 0 or nid == area.mem_nid):
        if mag.top != 0 or refill(s, area, mag):
            object = last_slot(mag, mag.top)[0]
            mag.top -= sizeof(void*)
    elif take_objects(s, s.nodes + (area.mem_nid if nid < 0 else nid), &object, 1) == 0:
        object = NULL
    if nid < 0:
        nid = area.mem_nid
    area_exit(area)
    if object == NULL:
        object = alloc_more(s, gfp, nid)
    if object != NULL and gfp & GFP_ZERO:
        memset(object, 0, s.object_size)
    return object


# Put a batch into an empty magazine, from the depot or else from partial slabs; returns how many.
cdef uint32_t refill(kmem_cache* s, cpu_area* area, magazine* mag) noexcept nogil:
    cdef kmem_cache_node* n = s.nodes + area.mem_nid
    cdef uint32_t got = 0
    if n.depot_n != 0:
        spin_lock(&n.depot_lock)
        got = min(n.depot_n, s.batch)
        n.depot_n -= got
        memcpy(mag.slots, n.depot + n.depot_n, got * sizeof(void*))
        spin_unlock(&n.depot_lock)
    if got == 0:
        got = take_objects(s, n, mag.slots, s.batch)
    mag.top = got * sizeof(void*)
    return got


# Node nid has none left: a new slab there, then what other nodes have, then a new slab
# anywhere.  Linux looks at other nodes' partial slabs first (get_any_partial()).
cdef void* alloc_more(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil:
    cdef void* object
    if s.machine.nr_nodes > 1 and not gfp & GFP_THISNODE:
        object = alloc_from_new_slab(
            s, (gfp | GFP_THISNODE | GFP_NOWARN) & ~<uint32_t>GFP_DIRECT_RECLAIM, nid)
        if object == NULL:
            object = alloc_anywhere(s, False)
        if object != NULL:
            return object
    object = alloc_from_new_slab(s, gfp, nid)
    if object == NULL and not gfp & GFP_THISNODE:
        object = alloc_anywhere(s, True)
    return object


# One object of a new slab; as many more as fit go to the magazine, lowest address first out.
cdef void* alloc_from_new_slab(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil:
    cdef cpu_area* area
    cdef magazine* mag
    cdef slab* sl = new_slab(s, gfp, nid)
    cdef uint32_t taken = 1
    cdef uint32_t i
    cdef char* base
    if sl == NULL:
        return NULL
    base = <char*>slab_address(s.machine, sl) + s.red_left_pad
    mag = magazine_enter(s, &area)
    if mag.end > mag.top and nid == area.mem_nid and is_local(area, base):
        taken += min(<uint32_t>(sl.objects - 1), <uint32_t>((mag.end - mag.top) >> 3))
        for i in range(1, taken):
            last_slot(mag, mag.top)[taken - i] = base + <uint64_t>i * s.size
        mag.top += (taken - 1) * sizeof(void*)
    publish_slab(s, sl, taken)
    area_exit(area)
    return base


# What any node has left, in its depot too if need be.
cdef void* alloc_anywhere(kmem_cache* s, bint depots) noexcept nogil:
    cdef void* object
    cdef kmem_cache_node* n
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        n = s.nodes + nid
        if take_objects(s, n, &object, 1):
            return object
        if depots and n.depot_n != 0:
            spin_lock(&n.depot_lock)
            object = NULL
            if n.depot_n != 0:
                n.depot_n -= 1
                object = n.depot[n.depot_n]
            spin_unlock(&n.depot_lock)
            if object != NULL:
                return object
    return NULL


cdef void slab_free_slow(kmem_cache* s, void* object) noexcept nogil:
    if s.flags & SLAB_DEBUG_FLAGS:
        free_debugged(s, object)
    else:
        free_to_magazine(s, object)


cdef void free_to_magazine(kmem_cache* s, void* object) noexcept nogil:
    cdef cpu_area* area
    cdef magazine* mag = magazine_enter(s, &area)
    cdef list_head empty
    list_init(&empty)
    if mag.end == 0:
        put_objects(s, &object, 1, &empty)
    elif is_local(area, object):
        if mag.top == mag.end:
            spill(s, area, mag, &empty)
        last_slot(mag, mag.top)[1] = object
        mag.top += sizeof(void*)
    else:
        mag.remote[mag.nr_remote] = object
        mag.nr_remote += 1
        if mag.nr_remote == REMOTE_SLOTS:
            send_home(s, mag.remote, mag.nr_remote, &empty)
            mag.nr_remote = 0
    area_exit(area)
    if unlikely(not list_empty(&empty)):
        discard_slabs(s.machine, &empty)


# Make room in a full magazine.  What came last leaves: it is often another thread's, and goes
# back to it through the few slots and lines that both have at hand.
cdef void spill(kmem_cache* s, cpu_area* area, magazine* mag, list_head* empty) noexcept nogil:
    mag.top -= s.batch * sizeof(void*)
    to_depot(s, s.nodes + area.mem_nid, mag.slots + magazine_count(mag), s.batch, empty)


# Objects of one node to its depot, or to their slabs when that is full.
cdef void to_depot(kmem_cache* s, kmem_cache_node* n, void** objects, uint32_t count,
                   list_head* empty) noexcept nogil:
    spin_lock(&n.depot_lock)
    if n.depot_n + count <= s.depot_max:
        memcpy(n.depot + n.depot_n, objects, count * sizeof(void*))
        n.depot_n += count
        count = 0
    spin_unlock(&n.depot_lock)
    if count:
        put_objects(s, objects, count, empty)


# Objects of other nodes: those of each at once.
cdef void send_home(kmem_cache* s, void** objects, uint32_t count,
                    list_head* empty) noexcept nogil:
    cdef void* batch[35]            # REMOTE_SLOTS
    cdef machine* m = s.machine
    cdef uint32_t n
    cdef uint32_t i
    cdef uint32_t left
    cdef int nid
    while count:
        nid = page_zone(m, object_page(m, objects[0])).nid
        n = 0
        left = 0
        for i in range(count):
            if page_zone(m, object_page(m, objects[i])).nid == nid:
                batch[n] = objects[i]
                n += 1
            else:
                objects[left] = objects[i]
                left += 1
        to_depot(s, s.nodes + nid, batch, n, empty)
        count = left


# ---- debugged caches --------------------------------------------------------

# All the way from a compiled user's call to these, one function jumps to the next: they find its
# return address on the stack.
cdef void* alloc_debugged(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil:
    cdef slab_user who
    who.addr = return_address()
    who.handle = 0
    who.refused = 0
    return debug_alloc(s, gfp, nid, s.object_size, &who)


cdef void free_debugged(kmem_cache* s, void* object) noexcept nogil:
    cdef slab_user who
    who.addr = return_address()
    who.handle = 0
    who.refused = 0
    s = debug_free(s.machine, s, object, &who)
    if s != NULL:
        free_to_magazine(s, object)


cdef void* kmem_cache_alloc_debug(kmem_cache* s, uint32_t gfp, int nid, uint64_t orig_size,
                                  slab_user* who) noexcept nogil:
    if unlikely(s.machine.options & MACHINE_INJECT_SLAB) and should_failslab(s.machine, gfp):
        return NULL
    return debug_alloc(s, gfp, nid, orig_size, who)


# ---- many at once -----------------------------------------------------------

cdef uint64_t kmem_cache_alloc_bulk(kmem_cache* s, uint32_t gfp, uint64_t n,
                                    void** objects_ret) noexcept nogil:
    cdef cpu_area* area
    cdef magazine* mag
    cdef uint64_t got = 0
    cdef uint64_t i
    cdef uint32_t some
    if unlikely(s.machine.options & MACHINE_INJECT_SLAB) and should_failslab(s.machine, gfp):
        return 0
    while got < n:
        mag = magazine_enter(s, &area)
        while got < n and (mag.top != 0 or (mag.end != 0 and refill(s, area, mag))):
            some = <uint32_t>min(<uint64_t>magazine_count(mag), n - got)
            mag.top -= some * sizeof(void*)
            memcpy(objects_ret + got, mag.slots + magazine_count(mag), some * sizeof(void*))
            got += some
        area_exit(area)
        if got < n:
            objects_ret[got] = slab_alloc_slow(s, gfp & ~<uint32_t>GFP_ZERO, -1)
            if objects_ret[got] == NULL:
                kmem_cache_free_bulk(s, got, objects_ret)
                return 0
            got += 1
    if gfp & GFP_ZERO:
        for i in range(n):
            memset(objects_ret[i], 0, s.object_size)
    return n


cdef void kmem_cache_free_bulk(kmem_cache* s, uint64_t n, void** objects) noexcept nogil:
    cdef cpu_area* area
    cdef magazine* mag
    cdef list_head empty
    cdef uint64_t i = 0
    list_init(&empty)
    mag = magazine_enter(s, &area)
    while i < n and mag.end != 0 and is_local(area, objects[i]):
        if mag.top == mag.end:
            spill(s, area, mag, &empty)
        last_slot(mag, mag.top)[1] = objects[i]
        mag.top += sizeof(void*)
        i += 1
    area_exit(area)
    if not list_empty(&empty):
        discard_slabs(s.machine, &empty)
    while i < n:
        slab_free_slow(s, objects[i])
        i += 1


alloc_slowly = alloc_on_node
free_slowly = free_on_node
attach_areas()
