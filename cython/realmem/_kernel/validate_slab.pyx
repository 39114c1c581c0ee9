# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Recount the slab allocator.  Stops at the first thing that is wrong.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from realmem._kernel.kmalloc cimport is_large_kmalloc
from realmem._kernel.percpu cimport freeze_cpu_areas, thaw_cpu_areas
from realmem._kernel.slab_types cimport (
    NO_MAGAZINE, SLAB_LIVE, area_magazine, is_slab, kmem_cache, kmem_cache_node, list_to_slab,
    magazine, magazine_count, object_slab, slab, slab_address, slab_of, slab_state,
)
from realmem.compiler cimport spin_lock, spin_unlock
from realmem.linux cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)
from realmem.types cimport (
    PAGE_ALLOCATED, PAGE_SHIFT, cpu_area, list_head, machine, page, page_zone, pfn_to_page, zone,
)


# Areas are stopped, and every lock of every cache is taken, which nobody else does for two.
cdef void validate_slabs(machine* m, slab_finding* ret) noexcept nogil:
    cdef slab_state* state = slab_of(m)
    cdef uint64_t bytes = (m.max_pfn << 6) + 64
    cdef uint8_t* seen = <uint8_t*>mmap(
        NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef kmem_cache* s
    ret.what = SLAB_VALID
    ret.cache = NULL
    if seen == MAP_FAILED:
        ret.what = NO_ROOM_TO_CHECK
        return
    freeze_cpu_areas(m)
    spin_lock(&state.lock)
    s = state.caches
    while s != NULL:
        lock_cache(s)
        s = s.next
    s = state.caches
    while s != NULL and ret.what == SLAB_VALID:
        validate_cache(m, s, seen, ret)
        s = s.next
    if ret.what == SLAB_VALID:
        validate_frames(m, ret)
    s = state.caches
    while s != NULL:
        if ret.what == SLAB_VALID:
            validate_counts(s, ret)
        unlock_cache(s)
        s = s.next
    spin_unlock(&state.lock)
    thaw_cpu_areas(m)
    munmap(seen, bytes)


cdef void lock_cache(kmem_cache* s) noexcept nogil:
    cdef kmem_cache_node* n
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        n = s.nodes + nid
        spin_lock(&n.depot_lock)
        spin_lock(&n.list_lock)
        n.seen_slabs = 0
        n.seen_objects = 0
        n.seen_partial = 0
        n.seen_inuse = 0
        n.seen_cached = 0


cdef void unlock_cache(kmem_cache* s) noexcept nogil:
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        spin_unlock(&s.nodes[nid].list_lock)
        spin_unlock(&s.nodes[nid].depot_lock)


# The free objects of a cache, wherever they are.
cdef void validate_cache(machine* m, kmem_cache* s, uint8_t* seen,
                         slab_finding* ret) noexcept nogil:
    cdef cpu_area* area
    cdef magazine* mag
    cdef int nid
    for nid in range(m.nr_nodes):
        if not validate_partial(m, s, s.nodes + nid, seen, ret):
            return
        if not validate_objects(m, s, s.nodes[nid].depot, s.nodes[nid].depot_n, nid, seen, ret):
            return
    if s.slot == NO_MAGAZINE:
        return
    area = m.areas
    while area != NULL:
        mag = area_magazine(area, s.magazine_back)
        if (not validate_objects(m, s, mag.slots, magazine_count(mag), area.mem_nid, seen,
                                 ret)
                or not validate_objects(m, s, mag.remote, mag.nr_remote, -1, seen, ret)):
            return
        area = area.next


cdef bint validate_partial(machine* m, kmem_cache* s, kmem_cache_node* n, uint8_t* seen,
                           slab_finding* ret) noexcept nogil:
    cdef list_head* at = n.partial.next
    cdef uint64_t listed = 0
    cdef slab* sl
    while at != &n.partial:
        sl = list_to_slab(at)
        if at.next.prev != at or at.prev.next != at:
            return report(ret, BAD_SLAB_LINK, s, <uint64_t>sl, 0, 0)
        if (not is_slab(<page*>sl) or sl.live != SLAB_LIVE or sl.cache != s
                or page_zone(m, <page*>sl).nid != n.nid):
            return report(ret, BAD_SLAB_CACHE, s, <uint64_t>slab_address(m, sl), 0, 0)
        if sl.inuse >= sl.objects:
            return report(ret, BAD_SLAB_INUSE, s, <uint64_t>slab_address(m, sl), sl.objects,
                          sl.inuse)
        if not validate_freelist(m, s, sl, seen, ret):
            return False
        listed += 1
        at = at.next
    if listed != n.nr_partial:
        return report(ret, BAD_NR_PARTIAL, s, 0, listed, n.nr_partial)
    return True


cdef bint validate_freelist(machine* m, kmem_cache* s, slab* sl, uint8_t* seen,
                            slab_finding* ret) noexcept nogil:
    cdef void* object = sl.freelist
    cdef uint32_t n = 0
    while object != NULL:
        n += 1
        if n > sl.objects:
            break
        if not starts_object(m, s, object) or object_slab(m, object) != sl:
            return report(ret, BAD_OBJECT, s, <uint64_t>object, 0, 0)
        if not first_sight(m, seen, object):
            return report(ret, OBJECT_TWICE, s, <uint64_t>object, 0, 0)
        object = (<void**>(<char*>object + s.offset))[0]
    if n != <uint32_t>(sl.objects - sl.inuse):
        return report(ret, BAD_FREELIST, s, <uint64_t>slab_address(m, sl),
                      sl.objects - sl.inuse, n)
    return True


# Objects in an array: of live slabs of this cache and node (-1: any).
cdef bint validate_objects(machine* m, kmem_cache* s, void** objects, uint32_t n, int nid,
                           uint8_t* seen, slab_finding* ret) noexcept nogil:
    cdef slab* sl
    cdef uint32_t i
    cdef int home
    for i in range(n):
        if not starts_object(m, s, objects[i]):
            return report(ret, BAD_OBJECT, s, <uint64_t>objects[i], 0, 0)
        sl = object_slab(m, objects[i])
        home = page_zone(m, <page*>sl).nid
        if sl.live != SLAB_LIVE or (nid >= 0 and home != nid):
            return report(ret, BAD_OBJECT, s, <uint64_t>objects[i], nid, home)
        if not first_sight(m, seen, objects[i]):
            return report(ret, OBJECT_TWICE, s, <uint64_t>objects[i], 0, 0)
        s.nodes[home].seen_cached += 1
    return True


cdef bint starts_object(machine* m, const kmem_cache* s, const void* object) noexcept nogil:
    cdef uint64_t offset = <uint64_t>object - m.direct_map
    cdef uint64_t pfn = offset >> PAGE_SHIFT
    cdef slab* sl
    cdef uint64_t at
    cdef int nid
    for nid in range(m.nr_nodes):
        if pfn - m.nodes[nid].start_pfn < m.nodes[nid].present_pages:
            if not is_slab(pfn_to_page(m, pfn)):
                return False
            sl = object_slab(m, object)
            at = <uint64_t>object - <uint64_t>slab_address(m, sl) - s.red_left_pad
            return sl.cache == s and at % s.size == 0 and at / s.size < sl.objects
    return False


cdef bint first_sight(machine* m, uint8_t* seen, const void* object) noexcept nogil:
    cdef uint64_t bit = (<uint64_t>object - m.direct_map) >> 3
    cdef uint8_t mask = <uint8_t>(1 << (bit & 7))
    if seen[bit >> 3] & mask:
        return False
    seen[bit >> 3] |= mask
    return True


# All slabs, the full ones too, and kmalloc()'s own pages.
cdef void validate_frames(machine* m, slab_finding* ret) noexcept nogil:
    cdef int64_t large
    cdef zone* z
    cdef uint64_t pfn
    cdef page* p
    cdef int nid
    cdef int i
    for nid in range(m.nr_nodes):
        large = 0
        for i in range(m.nr_zones):
            z = m.zones + i
            if z.nid != nid:
                continue
            pfn = z.start_pfn
            while pfn < z.start_pfn + z.spanned_pages:
                p = pfn_to_page(m, pfn)
                if p.kind.h.state == PAGE_ALLOCATED:
                    if is_slab(p) and not validate_frame(m, <slab*>p, nid, ret):
                        return
                    if is_large_kmalloc(p):
                        large += <int64_t>1 << p.kind.h.order
                    pfn += <uint64_t>1 << p.kind.h.order
                else:
                    pfn += 1
        if large != slab_of(m).large_pages[nid]:
            report(ret, BAD_LARGE_PAGES, NULL, nid, large, slab_of(m).large_pages[nid])
            return


cdef bint validate_frame(machine* m, slab* sl, int nid, slab_finding* ret) noexcept nogil:
    cdef kmem_cache* s = sl.cache
    cdef kmem_cache_node* n
    cdef uint64_t i
    if sl.live != SLAB_LIVE:
        return True             # being made or given back
    for i in range(<uint64_t>1 << sl.kind.h.order):
        if (not is_slab(<page*>(sl + i)) or sl[i].cache != s
                or sl[i].magazine_back != s.magazine_back):
            return report(ret, BAD_SLAB_FRAME, s, <uint64_t>slab_address(m, sl + i), 0, 0)
    if sl.inuse > sl.objects or (sl.inuse == sl.objects) != (sl.freelist == NULL):
        return report(ret, BAD_SLAB_INUSE, s, <uint64_t>slab_address(m, sl), sl.objects, sl.inuse)
    n = s.nodes + nid
    n.seen_slabs += 1
    n.seen_objects += sl.objects
    n.seen_inuse += sl.inuse
    n.seen_partial += sl.inuse < sl.objects
    return True


cdef void validate_counts(kmem_cache* s, slab_finding* ret) noexcept nogil:
    cdef kmem_cache_node* n
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        n = s.nodes + nid
        if n.seen_slabs != n.nr_slabs:
            report(ret, BAD_NR_SLABS, s, nid, n.seen_slabs, n.nr_slabs)
        elif n.seen_objects != n.total_objects:
            report(ret, BAD_TOTAL_OBJECTS, s, nid, n.seen_objects, n.total_objects)
        elif n.seen_partial != <int64_t>n.nr_partial:
            report(ret, BAD_NR_PARTIAL, s, nid, n.seen_partial, n.nr_partial)
        elif n.seen_cached > n.seen_inuse:
            report(ret, BAD_CACHED, s, nid, n.seen_inuse, n.seen_cached)


cdef bint report(slab_finding* ret, int what, kmem_cache* s, uint64_t address, int64_t expected,
                 int64_t found) noexcept nogil:
    ret.what = what
    ret.cache = s
    ret.address = address
    ret.expected = expected
    ret.found = found
    return False
