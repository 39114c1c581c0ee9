# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Objects of debugged caches.  Compare mm/slub.c (Linux 6.18).
#
# A slab without a free object is on its node's list `full`, every other one on `partial`; what
# the checks do to a slab may move it.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.page_free cimport FREE_BAD_PFN, free_check
from realmem._kernel.percpu cimport area_enter, area_exit, area_set_cpu, attach_areas
from realmem._kernel.slab_check cimport (
    FROM_PYTHON, SLUB_RED_ACTIVE, SLUB_RED_INACTIVE, TRACK_ALLOC, TRACK_FREE, check_empty_slab,
    check_object, check_slab, check_valid_pointer, get_orig_size, get_track, init_object,
    object_err, object_fix, on_freelist, set_orig_size, set_track,
)
from realmem._kernel.slab_log cimport (
    ALREADY_FREE, FIX_ALL_USED, FIX_NOT_FREED, FREELIST_POINTER, INVALID_POINTER,
    NOTHING_ALLOCATED, NO_SLAB, OBJECTS_REMAINING, REMAINING_OBJECT, WRONG_CACHE,
    WRONG_NR_PARTIAL, finding, slab_log_begin, slab_log_end, slab_log_note,
)
from realmem._kernel.slab_pages cimport discard_slabs, new_slab, publish_slab, slab_node
from realmem._kernel.slab_types cimport (
    SLAB_CONSISTENCY_CHECKS, SLAB_DEBUG_FLAGS, SLAB_FROZEN, SLAB_STORE_USER, is_slab,
    kmem_cache, kmem_cache_node, list_to_slab, object_page, object_slab, slab, slab_address,
)
from realmem.compiler cimport peek64, spin_lock, spin_unlock, this_cpu_id
from realmem.types cimport (
    GFP_DIRECT_RECLAIM, GFP_NOWARN, GFP_THISNODE, GFP_ZERO, PAGE_SHIFT, cpu_area, list_add,
    list_add_tail, list_del, list_head, list_init, machine,
)


cdef kmem_cache* cache_of(machine* m, const void* object) noexcept nogil:
    cdef uint64_t pfn = (<uint64_t>object - m.direct_map) >> PAGE_SHIFT
    if pfn >= m.max_pfn or free_check(m, pfn, 0) == FREE_BAD_PFN:
        return NULL
    if not is_slab(object_page(m, object)):
        return NULL
    return object_slab(m, object).cache


# Whether s is checked at each call, or at this one.
cdef inline bint checked(const kmem_cache* s, const slab_user* who) noexcept nogil:
    return s.flags & SLAB_CONSISTENCY_CHECKS or who.addr == FROM_PYTHON


# ---- allocating -------------------------------------------------------------

cdef void* debug_alloc(kmem_cache* s, uint32_t gfp, int nid, uint64_t orig_size,
                       slab_user* who) noexcept nogil:
    cdef void* object
    if nid < 0:
        nid = this_node(s.machine)
    object = take_single(s, s.nodes + nid, orig_size, who)
    if object == NULL and s.machine.nr_nodes > 1 and not gfp & GFP_THISNODE:
        object = take_from_new_slab(
            s, (gfp | GFP_THISNODE | GFP_NOWARN) & ~<uint32_t>GFP_DIRECT_RECLAIM, nid,
            orig_size, who)
        if object == NULL:
            object = take_anywhere(s, orig_size, who)
    if object == NULL:
        object = take_from_new_slab(s, gfp, nid, orig_size, who)
    if object == NULL and not gfp & GFP_THISNODE:
        object = take_anywhere(s, orig_size, who)
    if object != NULL and gfp & GFP_ZERO:
        memset(object, 0, get_orig_size(s, object))
    return object


cdef int this_node(machine* m) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    cdef int nid
    if this_cpu_id() != area.cpu:
        area_set_cpu(area)
    nid = area.mem_nid
    area_exit(area)
    return nid


cdef void* take_anywhere(kmem_cache* s, uint64_t orig_size, slab_user* who) noexcept nogil:
    cdef void* object
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        object = take_single(s, s.nodes + nid, orig_size, who)
        if object != NULL:
            return object
    return NULL


# An object of a node's partial slabs.  Those that are found corrupted are left with all their
# objects in use.
cdef void* take_single(kmem_cache* s, kmem_cache_node* n, uint64_t orig_size,
                       slab_user* who) noexcept nogil:
    cdef list_head* at
    cdef list_head* next
    cdef void* object = NULL
    cdef slab* sl
    spin_lock(&n.list_lock)
    at = n.partial.next
    while at != &n.partial and object == NULL:
        next = at.next
        sl = list_to_slab(at)
        object = take_from(s, sl, orig_size, who)
        if sl.freelist == NULL:
            list_del(at)
            n.nr_partial -= 1
            list_add(at, &n.full)
        at = next
    spin_unlock(&n.list_lock)
    return object


# Preconditions: n.list_lock is held, or the slab is the caller's; it has a free list.
cdef void* take_from(kmem_cache* s, slab* sl, uint64_t orig_size, slab_user* who) noexcept nogil:
    cdef void* object = sl.freelist
    if not check_valid_pointer(s, sl, object):
        # Linux would follow it first.
        object_err(s, sl, object, FREELIST_POINTER)
        return disable_slab(s, sl, who)
    sl.freelist = (<void**>(<char*>object + s.offset))[0]
    sl.inuse += 1
    if checked(s, who) and not (check_slab(s, sl)
                                and check_object(s, sl, object, SLUB_RED_INACTIVE)):
        return disable_slab(s, sl, who)
    set_track(s, object, TRACK_ALLOC, who.addr, who.handle)
    set_orig_size(s, object, orig_size)
    init_object(s, object, SLUB_RED_ACTIVE)
    return object


# The best that can be done for a corrupted slab: its other objects are not touched again.
cdef void* disable_slab(kmem_cache* s, slab* sl, slab_user* who) noexcept nogil:
    slab_log_note(s, FIX_ALL_USED, sl, 0, 0)
    sl.freelist = NULL
    sl.inuse = sl.objects
    sl.flags |= SLAB_FROZEN
    who.refused += 1
    return NULL


# The first object of a new slab.  Its others are in no list yet when it is taken.
cdef void* take_from_new_slab(kmem_cache* s, uint32_t gfp, int nid, uint64_t orig_size,
                              slab_user* who) noexcept nogil:
    cdef slab* sl = new_slab(s, gfp, nid)
    cdef kmem_cache_node* n
    cdef char* object
    if sl == NULL:
        return NULL
    object = <char*>slab_address(s.machine, sl) + s.red_left_pad
    (<void**>(object + s.offset))[0] = NULL
    set_track(s, object, TRACK_ALLOC, who.addr, who.handle)
    set_orig_size(s, object, orig_size)
    init_object(s, object, SLUB_RED_ACTIVE)
    publish_slab(s, sl, 1)
    if sl.objects == 1:
        n = slab_node(s, sl)
        spin_lock(&n.list_lock)
        list_add(&sl.list, &n.full)
        spin_unlock(&n.list_lock)
    return object


# ---- freeing ----------------------------------------------------------------

cdef kmem_cache* debug_free(machine* m, kmem_cache* s, void* object,
                            slab_user* who) noexcept nogil:
    cdef kmem_cache* owner = cache_of(m, object)
    cdef list_head empty
    if owner == NULL or (s != NULL and owner != s):
        report_foreign(s, owner, object)
        if owner == NULL:
            who.refused += 1
            return NULL
    if not owner.flags & SLAB_DEBUG_FLAGS:
        return owner
    list_init(&empty)
    free_single(owner, object_slab(m, object), object, who, &empty)
    discard_slabs(m, &empty)
    return NULL


# Compare cache_from_obj().
cdef void report_foreign(kmem_cache* s, kmem_cache* owner, void* object) noexcept nogil:
    cdef finding* f
    cdef slab* sl = NULL
    if s == NULL or not s.flags & SLAB_DEBUG_FLAGS:
        return
    if owner != NULL:
        sl = object_slab(s.machine, object)
    f = slab_log_begin(s, NO_SLAB if owner == NULL else WRONG_CACHE, sl)
    if f == NULL:
        return
    f.object = <uint64_t>object
    f.other = owner
    if (owner != NULL and owner.flags & SLAB_STORE_USER
            and check_valid_pointer(owner, sl, object)):
        f.tracked = True
        f.tracks[0] = get_track(owner, object, TRACK_ALLOC)[0]
        f.tracks[1] = get_track(owner, object, TRACK_FREE)[0]
    slab_log_end(s)


cdef void free_single(kmem_cache* s, slab* sl, void* object, slab_user* who,
                      list_head* empty) noexcept nogil:
    cdef kmem_cache_node* n = slab_node(s, sl)
    cdef bint had_free              # and so it is on `partial`, whatever the checks do to it
    spin_lock(&n.list_lock)
    had_free = sl.freelist != NULL
    if not may_free(s, sl, object, who):
        object_fix(s, sl, object, FIX_NOT_FREED)
        who.refused += 1
        settle(n, sl, had_free)
        spin_unlock(&n.list_lock)
        return
    set_track(s, object, TRACK_FREE, who.addr, who.handle)
    init_object(s, object, SLUB_RED_INACTIVE)
    sl.inuse -= 1
    (<void**>(<char*>object + s.offset))[0] = sl.freelist
    sl.freelist = object
    if sl.inuse == 0 and n.nr_partial >= s.min_partial:
        check_empty_slab(s, sl)
        list_del(&sl.list)
        list_add(&sl.list, empty)
        n.nr_partial -= had_free
        sl.live = 0
        n.nr_slabs -= 1
        n.total_objects -= sl.objects
    elif not had_free:
        list_del(&sl.list)
        list_add_tail(&sl.list, &n.partial)
        n.nr_partial += 1
    spin_unlock(&n.list_lock)


# Compare free_debug_processing(), free_consistency_checks().
cdef bint may_free(kmem_cache* s, slab* sl, void* object, slab_user* who) noexcept nogil:
    cdef bint check = checked(s, who)
    if check and not check_slab(s, sl):
        return False
    if not check_valid_pointer(s, sl, object):
        # Without the flag Linux would take it.
        slab_log_note(s, INVALID_POINTER, sl, <int64_t>object, 0)
        return False
    if check and on_freelist(s, sl, object):
        object_err(s, sl, object, ALREADY_FREE)
        return False
    if sl.inuse == 0:               # Linux asks this first, and so can't tell of the object
        slab_log_note(s, NOTHING_ALLOCATED, sl, 0, 0)
        return False
    return not check or check_object(s, sl, object, SLUB_RED_ACTIVE)


# The checks may have cleared the free list of a slab.  Preconditions: n.list_lock is held.
cdef void settle(kmem_cache_node* n, slab* sl, bint had_free) noexcept nogil:
    if had_free and sl.freelist == NULL:
        list_del(&sl.list)
        n.nr_partial -= 1
        list_add(&sl.list, &n.full)


cdef void debug_refuse(machine* m, kmem_cache* s, void* object) noexcept nogil:
    cdef kmem_cache* owner = cache_of(m, object)
    cdef kmem_cache_node* n
    cdef slab_user who
    cdef slab* sl
    cdef bint had_free
    if owner == NULL or (s != NULL and owner != s):
        report_foreign(s, owner, object)
        return
    who.addr = FROM_PYTHON
    sl = object_slab(m, object)
    n = slab_node(owner, sl)
    spin_lock(&n.list_lock)
    had_free = sl.freelist != NULL
    may_free(owner, sl, object, &who)
    object_fix(owner, sl, object, FIX_NOT_FREED)
    settle(n, sl, had_free)
    spin_unlock(&n.list_lock)


# ---- the whole cache --------------------------------------------------------

cdef int64_t validate_cache(kmem_cache* s) noexcept nogil:
    cdef int64_t before = peek64(&s.nr_errors)
    cdef kmem_cache_node* n
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        n = s.nodes + nid
        spin_lock(&n.list_lock)
        # The full ones first: a slab that loses its free list joins them.
        validate_list(s, n, &n.full)
        if validate_list(s, n, &n.partial) != n.nr_partial:
            slab_log_note(s, WRONG_NR_PARTIAL, NULL, n.nr_partial, 0)
        spin_unlock(&n.list_lock)
    return peek64(&s.nr_errors) - before


# Returns how many slabs stay on the list.
cdef uint64_t validate_list(kmem_cache* s, kmem_cache_node* n, list_head* slabs) noexcept nogil:
    cdef list_head* at = slabs.next
    cdef list_head* next
    cdef slab* sl
    cdef uint64_t count = 0
    cdef bint had_free
    while at != slabs:
        next = at.next
        sl = list_to_slab(at)
        had_free = sl.freelist != NULL
        # One that is taken out of use was reported when that happened.
        if not sl.flags & SLAB_FROZEN:
            validate_slab(s, sl)
        settle(n, sl, had_free)
        count += not had_free or sl.freelist != NULL
        at = next
    return count


cdef void validate_slab(kmem_cache* s, slab* sl) noexcept nogil:
    cdef char* object = <char*>slab_address(s.machine, sl) + s.red_left_pad
    if not check_slab(s, sl) or not on_freelist(s, sl, NULL):
        return
    for _ in range(sl.objects):
        if not check_object(s, sl, object,
                            SLUB_RED_INACTIVE if is_free(s, sl, object) else SLUB_RED_ACTIVE):
            break
        object += s.size


# Preconditions: the free list is sound.
cdef bint is_free(const kmem_cache* s, const slab* sl, const void* object) noexcept nogil:
    cdef void* at = sl.freelist
    while at != NULL and at != object:
        at = (<void**>(<char*>at + s.offset))[0]
    return at != NULL


cdef void list_remaining(kmem_cache* s) noexcept nogil:
    cdef kmem_cache_node* n
    cdef list_head* at
    cdef int nid
    for nid in range(s.machine.nr_nodes):
        n = s.nodes + nid
        spin_lock(&n.list_lock)
        at = n.full.next
        while at != &n.full:
            list_objects(s, list_to_slab(at))
            at = at.next
        at = n.partial.next
        while at != &n.partial:
            if on_freelist(s, list_to_slab(at), NULL):
                list_objects(s, list_to_slab(at))
            at = at.next
        spin_unlock(&n.list_lock)


cdef void list_objects(kmem_cache* s, slab* sl) noexcept nogil:
    cdef char* object = <char*>slab_address(s.machine, sl) + s.red_left_pad
    slab_log_note(s, OBJECTS_REMAINING, sl, 0, 0)
    for _ in range(sl.objects):
        if not is_free(s, sl, object):
            object_err(s, sl, object, REMAINING_OBJECT)
        object += s.size


attach_areas()
