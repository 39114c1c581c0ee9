# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The bytes of debugged objects.  Compare mm/slub.c (Linux 6.18).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.host_calls cimport gettid
from realmem._kernel.slab_log cimport (
    ALIGNMENT_PADDING, END_POISON, FIX_FREELIST_CLEARED, FIX_NR_OBJECTS, FIX_OBJECT_COUNT,
    FIX_RESTORED, FREECHAIN_CORRUPT, FREELIST_CORRUPT, FREELIST_CYCLE, FREEPOINTER_CORRUPT,
    KMALLOC_REDZONE, LEFT_REDZONE, OBJECT_PADDING, POISON_OVERWRITTEN, RIGHT_REDZONE,
    SECTION_BEFORE, SECTION_OBJECT, SECTION_PADDING, SECTION_REDZONE, SLAB_DISABLED,
    SLAB_PADDING, TOO_MANY_IN_USE, TOO_MANY_OBJECTS, WRONG_NR_OBJECTS, WRONG_OBJECT_COUNT,
    add_section, finding, jiffies, slab_log_begin, slab_log_end, slab_log_note, track,
)
from realmem._kernel.slab_types cimport (
    OBJECT_POISON, SLAB_CONSISTENCY_CHECKS, SLAB_FROZEN, SLAB_KMALLOC, SLAB_POISON,
    SLAB_RED_ZONE, SLAB_STORE_USER, kmem_cache, slab, slab_address, slab_bytes,
)
from realmem.compiler cimport this_cpu_id
from realmem.types cimport page, page_zone


# ---- where things stand -----------------------------------------------------

cdef inline uint64_t object_extent(const kmem_cache* s) noexcept nogil:
    return s.size - s.red_left_pad


cdef inline bint freeptr_outside_object(const kmem_cache* s) noexcept nogil:
    return s.offset >= s.inuse


cdef inline uint64_t info_end(const kmem_cache* s) noexcept nogil:
    return s.inuse + (sizeof(void*) if freeptr_outside_object(s) else 0)


cdef inline void** free_pointer_of(const kmem_cache* s, void* object) noexcept nogil:
    return <void**>(<char*>object + s.offset)


cdef track* get_track(const kmem_cache* s, void* object, int which) noexcept nogil:
    return <track*>(<char*>object + info_end(s)) + which


cdef bint has_orig_size(const kmem_cache* s) noexcept nogil:
    return s.flags & SLAB_STORE_USER and s.flags & SLAB_KMALLOC


cdef inline uint32_t* orig_size_of(const kmem_cache* s, void* object) noexcept nogil:
    return <uint32_t*>(get_track(s, object, 0) + 2)


cdef void set_orig_size(const kmem_cache* s, void* object, uint64_t bytes) noexcept nogil:
    if has_orig_size(s):
        orig_size_of(s, object)[0] = <uint32_t>bytes


cdef uint64_t get_orig_size(const kmem_cache* s, void* object) noexcept nogil:
    if has_orig_size(s):
        # It stands where an overrun may have written.
        return min(<uint64_t>orig_size_of(s, object)[0], <uint64_t>s.object_size)
    return s.object_size


# Compare __do_krealloc().
cdef void resize_object(const kmem_cache* s, void* object, uint64_t bytes) noexcept nogil:
    if has_orig_size(s):
        set_orig_size(s, object, bytes)
        if s.flags & SLAB_RED_ZONE:
            memset(<char*>object + bytes, SLUB_RED_ACTIVE, s.object_size - bytes)


# Where padding begins.
cdef inline uint64_t padding_of(const kmem_cache* s) noexcept nogil:
    cdef uint64_t end = info_end(s)
    if s.flags & SLAB_STORE_USER:
        end += 2 * sizeof(track)
        if has_orig_size(s):
            end += sizeof(uint32_t)
    return end


cdef bint check_valid_pointer(const kmem_cache* s, const slab* sl,
                              const void* object) noexcept nogil:
    cdef uint64_t at = (<uint64_t>object - <uint64_t>slab_address(s.machine, sl)
                        - s.red_left_pad)
    return object == NULL or (at % s.size == 0 and at / s.size < sl.objects)


# ---- setting ----------------------------------------------------------------

cdef void setup_slab_debug(kmem_cache* s, slab* sl) noexcept nogil:
    cdef char* object = <char*>slab_address(s.machine, sl)
    if s.flags & SLAB_POISON:
        memset(object, POISON_INUSE, slab_bytes(sl))
    object += s.red_left_pad
    for _ in range(sl.objects):
        init_object(s, object, SLUB_RED_INACTIVE)
        if s.flags & SLAB_STORE_USER:
            memset(get_track(s, object, TRACK_ALLOC), 0, 2 * sizeof(track))
        object += s.size


cdef void init_object(const kmem_cache* s, void* object, unsigned char val) noexcept nogil:
    cdef char* p = <char*>object
    cdef uint64_t poison = s.object_size
    if s.flags & SLAB_RED_ZONE:
        memset(p - s.red_left_pad, val, s.red_left_pad)
        if val == SLUB_RED_ACTIVE:
            poison = get_orig_size(s, object)
    if s.flags & OBJECT_POISON and poison:
        memset(p, POISON_FREE, poison - 1)
        memset(p + poison - 1, POISON_END, 1)
    if s.flags & SLAB_RED_ZONE:
        memset(p + poison, val, s.inuse - poison)


cdef void set_track(const kmem_cache* s, void* object, int which, uint64_t addr,
                    uint32_t handle) noexcept nogil:
    cdef track* t
    if not s.flags & SLAB_STORE_USER:
        return
    t = get_track(s, object, which)
    t.addr = addr
    t.handle = handle
    t.cpu = this_cpu_id()
    t.pid = <int>gettid()
    t.when = jiffies()


# ---- reporting --------------------------------------------------------------

# Compare print_trailer().
cdef void describe_object(finding* f, const kmem_cache* s, const slab* sl,
                          void* object) noexcept nogil:
    cdef char* p = <char*>object
    cdef uint64_t end = padding_of(s)
    f.object = <uint64_t>object
    if object == NULL or not check_valid_pointer(s, sl, object):
        return
    f.is_object = True
    f.free_pointer = <uint64_t>free_pointer_of(s, object)[0]
    if s.flags & SLAB_STORE_USER:
        f.tracked = True
        f.tracks[0] = get_track(s, object, TRACK_ALLOC)[0]
        f.tracks[1] = get_track(s, object, TRACK_FREE)[0]
    if s.flags & SLAB_RED_ZONE:
        add_section(f, SECTION_REDZONE, p - s.red_left_pad, s.red_left_pad)
    elif p > <char*>slab_address(s.machine, sl) + 16:
        add_section(f, SECTION_BEFORE, p - 16, 16)
    add_section(f, SECTION_OBJECT, p, s.object_size)
    if s.flags & SLAB_RED_ZONE:
        add_section(f, SECTION_REDZONE, p + s.object_size, s.inuse - s.object_size)
    add_section(f, SECTION_PADDING, p + end, object_extent(s) - end)


cdef void object_err(kmem_cache* s, slab* sl, void* object, int what) noexcept nogil:
    cdef finding* f = slab_log_begin(s, what, sl)
    if f != NULL:
        describe_object(f, s, sl, object)
        slab_log_end(s)


cdef void object_fix(kmem_cache* s, slab* sl, const void* object, int what) noexcept nogil:
    cdef finding* f = slab_log_begin(s, what, sl)
    if f != NULL:
        f.object = <uint64_t>object
        slab_log_end(s)


# ---- checking ---------------------------------------------------------------

# Compare check_bytes_and_report(), slab_pad_check(), restore_bytes(); object NULL: it is the
# slab's padding.
cdef bint check_bytes(kmem_cache* s, slab* sl, void* object, int what, void* where,
                      unsigned char value, uint64_t bytes) noexcept nogil:
    cdef uint8_t* at = <uint8_t*>where
    cdef uint8_t* end = at + bytes
    cdef finding* f
    while at < end and at[0] == value:
        at += 1
    if at == end:
        return True
    while (end - 1)[0] == value:
        end -= 1
    f = slab_log_begin(s, what, sl)
    if f != NULL:
        f.start = <uint64_t>at
        f.end = <uint64_t>(end - 1)
        f.found = at[0]
        f.expected = value
        if object != NULL:
            describe_object(f, s, sl, object)
        else:
            add_section(f, SECTION_PADDING, where, bytes)
        slab_log_end(s)
    f = slab_log_begin(s, FIX_RESTORED, sl)
    if f != NULL:
        f.start = <uint64_t>at
        f.end = <uint64_t>(end - 1)
        f.found = what
        f.expected = value
        slab_log_end(s)
    memset(at, value, end - at)
    return False


cdef bint check_object(kmem_cache* s, slab* sl, void* object, unsigned char val) noexcept nogil:
    cdef char* p = <char*>object
    cdef uint64_t orig_size
    cdef bint ok = True
    if s.flags & SLAB_RED_ZONE:
        ok &= check_bytes(s, sl, object, LEFT_REDZONE, p - s.red_left_pad, val, s.red_left_pad)
        ok &= check_bytes(s, sl, object, RIGHT_REDZONE, p + s.object_size, val,
                          s.inuse - s.object_size)
        if val == SLUB_RED_ACTIVE:
            orig_size = get_orig_size(s, object)
            ok &= check_bytes(s, sl, object, KMALLOC_REDZONE, p + orig_size, val,
                              s.object_size - orig_size)
    elif s.flags & SLAB_POISON:
        ok &= check_bytes(s, sl, object, ALIGNMENT_PADDING, p + s.object_size, POISON_INUSE,
                          s.inuse - s.object_size)
    if s.flags & SLAB_POISON:
        if val == SLUB_RED_INACTIVE and s.flags & OBJECT_POISON:
            ok &= check_bytes(s, sl, object, POISON_OVERWRITTEN, p, POISON_FREE,
                              s.object_size - 1)
            ok &= check_bytes(s, sl, object, END_POISON, p + s.object_size - 1, POISON_END, 1)
        ok &= check_bytes(s, sl, object, OBJECT_PADDING, p + padding_of(s), POISON_INUSE,
                          object_extent(s) - padding_of(s))
    # While it is in use, a free pointer inside it is the user's.
    if (freeptr_outside_object(s) or val != SLUB_RED_ACTIVE) and not check_valid_pointer(
            s, sl, free_pointer_of(s, object)[0]):
        object_err(s, sl, object, FREEPOINTER_CORRUPT)
        # What was behind it is lost; the count will be found wrong.
        free_pointer_of(s, object)[0] = NULL
        ok = False
    return ok


cdef bint check_slab(kmem_cache* s, slab* sl) noexcept nogil:
    cdef uint64_t most = slab_bytes(sl) / s.size
    cdef uint64_t rest = slab_bytes(sl) % s.size
    if sl.objects > most:
        slab_log_note(s, TOO_MANY_OBJECTS, sl, sl.objects, most)
        return False
    if sl.inuse > sl.objects:
        slab_log_note(s, TOO_MANY_IN_USE, sl, sl.inuse, sl.objects)
        return False
    if sl.flags & SLAB_FROZEN:
        slab_log_note(s, SLAB_DISABLED, sl, 0, 0)
        return False
    if s.flags & SLAB_POISON and rest:
        # Repaired by itself, and no reason to mistrust the slab.
        check_bytes(s, sl, NULL, SLAB_PADDING,
                    <char*>slab_address(s.machine, sl) + slab_bytes(sl) - rest,
                    POISON_INUSE, rest)
    return True


cdef bint on_freelist(kmem_cache* s, slab* sl, const void* search) noexcept nogil:
    cdef void* at = sl.freelist
    cdef void* before = NULL
    cdef uint32_t nr = 0
    cdef uint16_t most = <uint16_t>(slab_bytes(sl) / s.size)
    while at != NULL and nr <= sl.objects:
        if at == search:
            return True
        if not check_valid_pointer(s, sl, at):
            if before != NULL:
                object_err(s, sl, before, FREECHAIN_CORRUPT)
                free_pointer_of(s, before)[0] = NULL
                break
            slab_log_note(s, FREELIST_CORRUPT, sl, 0, 0)
            clear_freelist(s, sl)
            return False
        before = at
        at = free_pointer_of(s, before)[0]
        nr += 1
    if nr > sl.objects:
        slab_log_note(s, FREELIST_CYCLE, sl, 0, 0)
        clear_freelist(s, sl)
        return False
    if sl.objects != most:
        slab_log_note(s, WRONG_NR_OBJECTS, sl, sl.objects, most)
        s.nodes[page_zone(s.machine, <page*>sl).nid].total_objects += most - sl.objects
        sl.objects = most
        slab_log_note(s, FIX_NR_OBJECTS, sl, 0, 0)
    if sl.inuse != sl.objects - nr:
        slab_log_note(s, WRONG_OBJECT_COUNT, sl, sl.inuse, sl.objects - nr)
        sl.inuse = <uint16_t>(sl.objects - nr)
        slab_log_note(s, FIX_OBJECT_COUNT, sl, 0, 0)
    return search == NULL


cdef void clear_freelist(kmem_cache* s, slab* sl) noexcept nogil:
    sl.freelist = NULL
    sl.inuse = sl.objects
    slab_log_note(s, FIX_FREELIST_CLEARED, sl, 0, 0)


# Compare free_slab().
cdef void check_empty_slab(kmem_cache* s, slab* sl) noexcept nogil:
    cdef char* object = <char*>slab_address(s.machine, sl) + s.red_left_pad
    if not s.flags & SLAB_CONSISTENCY_CHECKS or not check_slab(s, sl):
        return
    for _ in range(sl.objects):
        check_object(s, sl, object, SLUB_RED_INACTIVE)
        object += s.size
