# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""
A random mix of operations on slab caches and kmalloc, checked against a model as it goes.

Not a measurement: a workload for tests, compiled so that millions of operations take seconds.  The
model is independent of the allocator: one bit for each eight bytes of memory says whether a live
object lies there, so two that overlap are found at once; and each object is filled with a tag of
its own from end to end, and must still have it when it is freed or looked at.  What a cache with a
constructor gives out must be in the constructed state.
"""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from realmem._core.kmem_cache cimport KmemCache
from realmem._kernel.kernel_caches cimport objects_held
from realmem._kernel.kmalloc cimport kfree, kmalloc, kmalloc_node, krealloc, ksize
from realmem._kernel.slab cimport (
    kmem_cache_alloc, kmem_cache_alloc_bulk, kmem_cache_alloc_node, kmem_cache_free,
    kmem_cache_free_bulk,
)
from realmem._kernel.slab_types cimport kmem_cache
from realmem.compiler cimport SEQ_CST, atomic64_fetch_and, atomic64_fetch_or, load64, store64
from realmem.types cimport GFP_KERNEL, GFP_ZERO, PAGE_SHIFT, machine

cdef enum:
    MAX_CACHES = 32
    MAX_THREADS = 2
    RING = 256                  # objects on their way to the other thread
    BULK = 40                   # objects at once, at most
    KMALLOC = -1                # in place of a cache's index
    CONSTRUCTED = 0xC5
CONSTRUCTED_SIZE = 96           # of objects whose cache has CONSTRUCTOR

# What was found wrong.
cdef enum:
    RIGHT = 0
    NO_MEMORY = 1
    OVERLAP = 2                 # an object lies where another live one does
    OUTSIDE = 3                 # ... or in no memory
    CHANGED = 4                 # a live object's contents are not what was written there
    NOT_ZERO = 5
    NOT_CONSTRUCTED = 6
    NOT_LIVE = 7                # the model lost it: a bug in here

WORDS = ("right", "no memory", "overlaps a live object", "is in no memory of the machine",
         "changed while it was live", "is not zero", "is not in its constructed state",
         "was not live")

cdef struct object_t:
    uint8_t* at
    uint32_t size
    int32_t which               # index of its cache, or KMALLOC
    uint64_t tag

cdef struct ring:
    uint64_t put                # writer: the thread that passes objects on
    uint64_t pad[7]
    uint64_t got                # writer: the one that takes them
    uint64_t pad2[7]
    object_t objects[256]       # RING

cdef struct worker:
    object_t* live
    uint64_t n
    uint64_t seed
    uint64_t operations
    uint64_t crossed            # objects that the other thread had allocated
    int wrong
    uint64_t where


cdef void construct(void* object) noexcept nogil:
    memset(object, CONSTRUCTED, 96)

CONSTRUCTOR = <uint64_t>&construct


cdef class Churn:
    """
    The model, and the threads' objects.

    :param caches: slab caches of one machine; those with a constructor have CONSTRUCTOR and
        objects of CONSTRUCTED_SIZE bytes.
    :param most: live objects a thread.
    :param seed: of the random choices.
    """

    cdef list caches
    cdef kmem_cache* cache[32]
    cdef int nr_caches
    cdef machine* m
    cdef uint64_t most
    cdef uint64_t* covered      # a bit for each 8 bytes of memory
    cdef worker workers[2]
    cdef ring* rings            # by the thread that takes from it
    cdef int threads            # that are at work together

    def __cinit__(self, caches, uint64_t most, uint64_t seed):
        cdef KmemCache cache
        cdef int i
        self.caches = list(caches)
        if not 0 < len(self.caches) <= MAX_CACHES or not 0 < most <= 1 << 20:
            raise ValueError("caches or most out of range")
        for i, cache in enumerate(self.caches):
            cache.usable()
            self.cache[i] = cache.s
        self.nr_caches = len(self.caches)
        self.m = self.cache[0].machine
        self.most = most
        self.covered = <uint64_t*>calloc(self.m.max_pfn << (PAGE_SHIFT - 9), 8)
        self.rings = <ring*>calloc(MAX_THREADS, sizeof(ring))
        if self.covered == NULL or self.rings == NULL:
            raise MemoryError
        for i in range(MAX_THREADS):
            self.workers[i].seed = seed * 2 + i + 0x9E3779B97F4A7C15
            # Room for a bulk beyond the bound, and for all that is on its way.
            self.workers[i].live = <object_t*>calloc(most + BULK + RING, sizeof(object_t))
            if self.workers[i].live == NULL:
                raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(MAX_THREADS):
            free(self.workers[i].live)
        free(self.covered)
        free(self.rings)

    def work(self, int index, uint64_t operations, int threads):
        """
        Do so many operations as thread ``index`` of ``threads``.

        :raises AssertionError: something that must not be was seen; the other thread stops too.
        """
        cdef worker* w
        cdef uint64_t end
        cdef int i
        if not 0 <= index < threads <= MAX_THREADS:
            raise ValueError(f"no thread {index} of {threads}")
        for cache in self.caches:
            (<KmemCache>cache).usable()
        w = &self.workers[index]
        end = w.operations + operations
        self.threads = threads
        with nogil:
            while w.operations < end and self.all_is_right():
                self.step(w, index)
        for i in range(MAX_THREADS):
            self.complain(&self.workers[i])

    def free_all(self):
        """Free what is live; nobody else is at work."""
        cdef worker* w
        cdef object_t o
        cdef int i
        for i in range(MAX_THREADS):
            w = &self.workers[i]
            while w.n and w.wrong == RIGHT:
                w.n -= 1
                self.give(w, &w.live[w.n])
            while self.receive(i, &o) and w.wrong == RIGHT:
                self.give(w, &o)
            self.complain(w)

    def live(self):
        """List (address, size, index of its cache or -1) of each live object."""
        cdef int i
        cdef uint64_t j
        cdef ring* r
        cdef list found = []
        for i in range(MAX_THREADS):
            for j in range(self.workers[i].n):
                found.append(described(&self.workers[i].live[j]))
            r = &self.rings[i]
            for j in range(r.got, r.put):
                found.append(described(&r.objects[j & (RING - 1)]))
        return found

    def held(self):
        """Count, by the allocator's account, the objects of each cache that somebody has."""
        return [objects_held(self.cache[i]) for i in range(self.nr_caches)]

    @property
    def crossed(self):
        """Objects that were freed by the thread that had not allocated them."""
        return self.workers[0].crossed + self.workers[1].crossed

    cdef int complain(self, worker* w) except -1:
        if w.wrong != RIGHT:
            raise AssertionError(
                f"operation {w.operations}: object {w.where:#x} {WORDS[w.wrong]}")
        return 0

    cdef bint all_is_right(self) noexcept nogil:
        return self.workers[0].wrong == RIGHT and self.workers[1].wrong == RIGHT

    # ---- operations ----

    cdef void step(self, worker* w, int index) noexcept nogil:
        cdef object_t o
        cdef uint64_t chance = draw(w, 100)
        w.operations += 1
        if self.receive(index, &o):
            w.crossed += 1
            if draw(w, 2):
                self.give(w, &o)
                return
            w.live[w.n] = o             # to be freed later, among its own
            w.n += 1
        if w.n == 0 or (w.n < self.most and chance < 52):
            self.allocate(w)
        elif chance < 56:
            self.free_bulk(w)
        elif chance < 62:
            self.reallocate(w)
        else:
            take_out(w, draw(w, w.n), &o)
            if self.threads < 2 or chance < 80 or not self.send(1 - index, &o):
                self.give(w, &o)

    cdef void allocate(self, worker* w) noexcept nogil:
        cdef uint64_t chance = draw(w, 100)
        cdef int which = <int>draw(w, self.nr_caches)
        cdef kmem_cache* s = self.cache[which]
        cdef uint64_t size = 1 + draw(w, 1 << (3 + draw(w, 11)))
        cdef int nid = <int>draw(w, self.m.nr_nodes)
        if chance < 45:
            self.enter(w, kmem_cache_alloc(s, GFP_KERNEL), s.object_size, which)
        elif chance < 50:
            self.enter(w, kmem_cache_alloc_node(s, GFP_KERNEL, nid), s.object_size, which)
        elif chance < 53 and s.ctor == NULL:
            self.enter_zeroed(w, kmem_cache_alloc(s, GFP_KERNEL | GFP_ZERO), s.object_size,
                              which)
        elif chance < 60:
            self.allocate_bulk(w, which)
        elif chance < 90:
            self.enter(w, kmalloc(self.m, size, GFP_KERNEL), size, KMALLOC)
        elif chance < 93:
            self.enter(w, kmalloc_node(self.m, size, GFP_KERNEL, nid), size, KMALLOC)
        else:
            self.enter_zeroed(w, kmalloc(self.m, size, GFP_KERNEL | GFP_ZERO), size, KMALLOC)

    cdef void allocate_bulk(self, worker* w, int which) noexcept nogil:
        cdef void* objects[40]          # BULK
        cdef uint64_t n = 1 + draw(w, BULK)
        cdef uint64_t i
        if kmem_cache_alloc_bulk(self.cache[which], GFP_KERNEL, n, objects) != n:
            fail(w, NO_MEMORY, NULL)
            return
        for i in range(n):
            self.enter(w, objects[i], self.cache[which].object_size, which)

    # Objects of one cache, as many as stand next to each other in the table.
    cdef void free_bulk(self, worker* w) noexcept nogil:
        cdef void* objects[40]          # BULK
        cdef object_t o
        cdef uint64_t n = 0
        cdef uint64_t looked = 0
        cdef int which = w.live[draw(w, w.n)].which
        while which != KMALLOC and looked < 4 * BULK and n < BULK and w.n > looked:
            if w.live[w.n - 1 - looked].which == which:
                take_out(w, w.n - 1 - looked, &o)
                self.leave(w, &o)
                objects[n] = o.at
                n += 1
            else:
                looked += 1
        if n:
            kmem_cache_free_bulk(self.cache[which], n, objects)

    # krealloc() keeps what both sizes have.
    cdef void reallocate(self, worker* w) noexcept nogil:
        cdef object_t o
        cdef uint64_t at = draw(w, w.n)
        cdef uint64_t size = 1 + draw(w, 1 << (3 + draw(w, 11)))
        cdef uint64_t i
        cdef uint8_t* moved
        if w.live[at].which != KMALLOC:
            return
        take_out(w, at, &o)
        self.leave(w, &o)
        moved = <uint8_t*>krealloc(self.m, o.at, size, GFP_KERNEL)
        if moved == NULL:
            fail(w, NO_MEMORY, o.at)
            return
        for i in range(min(size, <uint64_t>o.size)):
            if moved[i] != tag_byte(o.tag, i):
                fail(w, CHANGED, moved)
        self.enter(w, moved, size, KMALLOC)

    # ---- the model ----

    cdef void enter_zeroed(self, worker* w, void* object, uint64_t size,
                           int which) noexcept nogil:
        cdef uint64_t i
        if object != NULL:
            for i in range(size):
                if (<uint8_t*>object)[i] != 0:
                    fail(w, NOT_ZERO, object)
        self.enter(w, object, size, which)

    # An object comes to life.
    cdef void enter(self, worker* w, void* object, uint64_t size, int which) noexcept nogil:
        cdef object_t* o = &w.live[w.n]
        cdef uint64_t i
        if object == NULL:
            fail(w, NO_MEMORY, object)
            return
        if not self.cover(w, object, size):
            return
        if which != KMALLOC and self.cache[which].ctor != NULL:
            for i in range(size):
                if (<uint8_t*>object)[i] != CONSTRUCTED:
                    fail(w, NOT_CONSTRUCTED, object)
        if which == KMALLOC and ksize(self.m, object) < size:
            fail(w, OUTSIDE, object)
        o.at = <uint8_t*>object
        o.size = <uint32_t>size
        o.which = which
        o.tag = next_random(w)
        for i in range(size):
            o.at[i] = tag_byte(o.tag, i)
        w.n += 1

    # ... and is about to be freed.
    cdef void leave(self, worker* w, object_t* o) noexcept nogil:
        cdef uint64_t i
        for i in range(o.size):
            if o.at[i] != tag_byte(o.tag, i):
                fail(w, CHANGED, o.at)
        if o.which != KMALLOC and self.cache[o.which].ctor != NULL:
            memset(o.at, CONSTRUCTED, o.size)
        self.uncover(w, o.at, o.size)

    cdef void give(self, worker* w, object_t* o) noexcept nogil:
        self.leave(w, o)
        if o.which == KMALLOC or draw(w, 8) == 0:
            kfree(self.m, o.at)         # of any cache
        else:
            kmem_cache_free(self.cache[o.which], o.at)

    cdef bint cover(self, worker* w, void* object, uint64_t size) noexcept nogil:
        cdef uint64_t first = (<uint64_t>object - self.m.direct_map) >> 3
        cdef uint64_t last = (<uint64_t>object - self.m.direct_map + size - 1) >> 3
        cdef uint64_t mask
        cdef uint64_t word = first >> 6
        if last >= self.m.max_pfn << (PAGE_SHIFT - 3) or <uint64_t>object & 7:
            fail(w, OUTSIDE, object)
            return False
        while word <= last >> 6:
            mask = bits_of(word, first, last)
            if atomic64_fetch_or(self.covered + word, mask, SEQ_CST) & mask:
                fail(w, OVERLAP, object)
                return False
            word += 1
        return True

    cdef void uncover(self, worker* w, void* object, uint64_t size) noexcept nogil:
        cdef uint64_t first = (<uint64_t>object - self.m.direct_map) >> 3
        cdef uint64_t last = (<uint64_t>object - self.m.direct_map + size - 1) >> 3
        cdef uint64_t mask
        cdef uint64_t word = first >> 6
        while word <= last >> 6:
            mask = bits_of(word, first, last)
            if atomic64_fetch_and(self.covered + word, ~mask, SEQ_CST) & mask != mask:
                fail(w, NOT_LIVE, object)
            word += 1

    # ---- from thread to thread ----

    cdef bint send(self, int index, const object_t* o) noexcept nogil:
        cdef ring* r = &self.rings[index]
        if r.put - load64(&r.got) == RING:
            return False
        r.objects[r.put & (RING - 1)] = o[0]
        store64(&r.put, r.put + 1)
        return True

    cdef bint receive(self, int index, object_t* ret) noexcept nogil:
        cdef ring* r = &self.rings[index]
        if load64(&r.put) == r.got or self.workers[index].n >= self.most + RING:
            return False
        ret[0] = r.objects[r.got & (RING - 1)]
        store64(&r.got, r.got + 1)
        return True


cdef tuple described(const object_t* o):
    return <uint64_t>o.at, o.size, o.which


# The bits of a word that stand for granules first to last.
cdef inline uint64_t bits_of(uint64_t word, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint64_t mask = ~<uint64_t>0
    if word == first >> 6:
        mask &= ~<uint64_t>0 << (first & 63)
    if word == last >> 6:
        mask &= ~<uint64_t>0 >> (63 - (last & 63))
    return mask


cdef inline uint8_t tag_byte(uint64_t tag, uint64_t i) noexcept nogil:
    return <uint8_t>((tag >> ((i & 7) << 3)) + (i >> 3))


cdef inline void take_out(worker* w, uint64_t at, object_t* ret) noexcept nogil:
    ret[0] = w.live[at]
    w.n -= 1
    w.live[at] = w.live[w.n]


cdef inline void fail(worker* w, int what, const void* where) noexcept nogil:
    if w.wrong == RIGHT:
        w.where = <uint64_t>where
        w.wrong = what


cdef inline uint64_t next_random(worker* w) noexcept nogil:
    w.seed ^= w.seed >> 12
    w.seed ^= w.seed << 25
    w.seed ^= w.seed >> 27
    return w.seed * <uint64_t>0x2545F4914F6CDD1D


cdef inline uint64_t draw(worker* w, uint64_t n) noexcept nogil:
    return (next_random(w) >> 33) % n
