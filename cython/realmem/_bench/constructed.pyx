# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""
What a constructor spares: objects that come back as they were made, against initialising each.

The object is a kilobyte of what kernel objects are made of: a lock, a reference count, list
heads that point at themselves, a hash table of such heads, statistics.  Its user takes a
reference, hangs it into a list, counts something, takes it out again and frees it: constructed
as it was.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from realmem._bench.meeting cimport now_ns
from realmem._core.kmem_cache cimport KmemCache
from realmem._kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from realmem._kernel.slab_types cimport kmem_cache
from realmem.types cimport GFP_KERNEL, list_add, list_del, list_head, list_init

cdef enum:
    NR_LISTS = 8
    NR_BUCKETS = 40
    MAX_HELD = 4096

cdef struct widget:
    int32_t lock
    int32_t refcount
    uint64_t state
    widget* self                # as a wait queue or a timer points back to its owner
    list_head lists[8]          # NR_LISTS
    list_head buckets[40]       # NR_BUCKETS
    uint64_t stats[29]

SIZE = sizeof(widget)


cdef void construct(void* object) noexcept nogil:
    cdef widget* w = <widget*>object
    cdef int i
    w.lock = 0
    w.refcount = 0
    w.state = 0
    w.self = w
    for i in range(NR_LISTS):
        list_init(&w.lists[i])
    for i in range(NR_BUCKETS):
        list_init(&w.buckets[i])
    memset(w.stats, 0, sizeof(w.stats))

CONSTRUCTOR = <uint64_t>&construct


# Take an object, initialised unless it comes so.
cdef inline widget* take(kmem_cache* s, bint initialise, list_head* list) noexcept nogil:
    cdef widget* w = <widget*>kmem_cache_alloc(s, GFP_KERNEL)
    if w == NULL:
        return NULL
    if initialise:
        construct(w)
    w.refcount += 1
    w.stats[0] += 1
    list_add(&w.lists[0], list)
    return w


cdef inline void give(kmem_cache* s, widget* w) noexcept nogil:
    list_del(&w.lists[0])
    list_init(&w.lists[0])
    w.stats[0] = 0
    w.refcount -= 1
    kmem_cache_free(s, w)


cdef bint run(kmem_cache* s, bint initialise, widget** objects, uint32_t held,
              uint32_t turns) noexcept nogil:
    cdef list_head list
    cdef uint32_t i
    list_init(&list)
    while turns:
        for i in range(held):
            objects[i] = take(s, initialise, &list)
            if objects[i] == NULL:
                return False
        for i in range(held):
            give(s, objects[i])
        turns -= 1
    return True


def measure(KmemCache made not None, KmemCache plain not None, uint32_t held, uint32_t turns,
            int rounds):
    """
    Time both ways in turns, the first one alternating.

    :param made: a cache of objects of SIZE bytes with CONSTRUCTOR.
    :param plain: one without.
    :param held: objects alive at once.
    :param turns: batches of so many in a sample.
    :param rounds: samples of each.
    :return: two lists of nanoseconds, of an object's whole life: constructed once, and initialised
        each time.
    :raises ValueError: a cache of other objects, or numbers out of range.
    :raises MemoryError: no memory for so many.
    """
    cdef widget** objects
    cdef int64_t start
    cdef bint worked = True
    cdef int number, which
    cdef kmem_cache* caches[2]
    made.usable()
    plain.usable()
    if made.c_ctor != CONSTRUCTOR or plain.object_size < sizeof(widget) or plain.constructor:
        raise ValueError("the caches must hold objects of SIZE, the first one's with CONSTRUCTOR")
    if not 0 < held <= MAX_HELD or not turns or rounds < 1:
        raise ValueError("held, turns or rounds out of range")
    caches[0] = made.s
    caches[1] = plain.s
    objects = <widget**>calloc(held, sizeof(widget*))
    if objects == NULL:
        raise MemoryError
    samples = ([], [])
    try:
        for number in range(rounds):
            for which in range(2):
                which ^= number & 1
                with nogil:
                    worked &= run(caches[which], which, objects, held, 1)
                    start = now_ns()
                    worked &= run(caches[which], which, objects, held, turns)
                    start = now_ns() - start
                samples[which].append(start / (<double>turns * held))
        if not worked:
            raise MemoryError("no memory for the objects to measure with")
    finally:
        free(objects)
    return samples
