# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""
Loops that time object allocators from C: realmem's slab caches and kmalloc, and any malloc.

Each is called through one function pointer with its own signature, so none pays for an adapter
that another is spared, and one word of each object is written.  Threads are Python's, pinned by
their caller; the measuring itself runs without the GIL.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from realmem._bench.meeting cimport meet, now_ns, pause
from realmem._core.kmem_cache cimport KmemCache
from realmem._kernel.kmalloc cimport kfree, kmalloc
from realmem._kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from realmem._kernel.slab_types cimport kmem_cache
from realmem.compiler cimport load32, load64, store64
from realmem.types cimport GFP_KERNEL, machine

ctypedef void* (*malloc_fn)(size_t size) noexcept nogil
ctypedef void (*free_fn)(void* object) noexcept nogil

cdef enum:
    CACHE = 0                   # kmem_cache_alloc() and kmem_cache_free()
    KMALLOC = 1                 # kmalloc() and kfree()
    MALLOC = 2

cdef enum:
    SAME = 0                    # allocate one object and free it
    LIFO = 1                    # allocate `held` objects, free them last first
    FIFO = 2                    # ... first first
    RANDOM = 3                  # ... in a fixed random order
    PASSED = 4                  # one thread allocates, another frees

PATTERNS = {"same": SAME, "lifo": LIFO, "fifo": FIFO, "random": RANDOM, "passed": PASSED}

cdef enum:
    MAX_JOBS = 2048
    MAX_HELD = 4096
    RING = 1024                 # objects on their way to the other thread
    RING_BATCH = 32

cdef extern from *:
    const uint64_t STOPPED "UINT64_MAX"     # instead of a count of objects put in

cdef struct target:
    int32_t kind
    uint64_t size
    kmem_cache* cache
    machine* m
    malloc_fn malloc
    free_fn free

cdef struct ring:
    uint64_t put                # objects put in so far; writer: the allocating thread
    uint64_t pad[7]
    uint64_t got                # ... taken out; writer: the freeing thread
    uint64_t pad2[7]
    void* objects[1024]         # RING

cdef struct job:
    target t
    int32_t pattern
    int32_t threads
    uint32_t held
    uint32_t turns              # batches in a sample
    int32_t failed
    uint32_t* shuffle
    double* ns                  # a sample a round: one allocation and its free


cdef inline void* take(target t, int kind) noexcept nogil:
    if kind == CACHE:
        return kmem_cache_alloc(t.cache, GFP_KERNEL)
    if kind == KMALLOC:
        return kmalloc(t.m, t.size, GFP_KERNEL)
    return t.malloc(t.size)


cdef inline void give(target t, int kind, void* object) noexcept nogil:
    if kind == CACHE:
        kmem_cache_free(t.cache, object)
    elif kind == KMALLOC:
        kfree(t.m, object)
    else:
        t.free(object)


cdef inline int run_same(const job* j, int kind, uint32_t turns) noexcept nogil:
    cdef target t = j.t
    cdef void* object
    while turns:
        object = take(t, kind)
        if object == NULL:
            return -1
        (<uint64_t*>object)[0] = turns
        give(t, kind, object)
        turns -= 1
    return 0


cdef inline int run_batches(const job* j, int kind, void** objects,
                            uint32_t turns) noexcept nogil:
    cdef target t = j.t
    cdef uint32_t held = j.held
    cdef const uint32_t* shuffle = j.shuffle
    cdef uint32_t i
    while turns:
        for i in range(held):
            objects[i] = take(t, kind)
            if objects[i] == NULL:
                return -1
            (<uint64_t*>objects[i])[0] = turns
        if j.pattern == LIFO:
            for i in range(held):
                give(t, kind, objects[held - 1 - i])
        elif j.pattern == FIFO:
            for i in range(held):
                give(t, kind, objects[i])
        else:
            for i in range(held):
                give(t, kind, objects[shuffle[i]])
        turns -= 1
    return 0


cdef inline int run_passing(const job* j, int kind, int index, ring* r) noexcept nogil:
    cdef target t = j.t
    cdef uint64_t total = <uint64_t>j.turns * RING_BATCH
    cdef uint64_t at = 0
    cdef uint64_t ready
    cdef void* object
    cdef int i
    while at < total:
        if index == 0:
            while at - load64(&r.got) > RING - RING_BATCH:
                pause()
            for i in range(RING_BATCH):
                object = take(t, kind)
                if object == NULL:
                    store64(&r.put, STOPPED)    # lest the other one waits for ever
                    return -1
                (<uint64_t*>object)[0] = at
                r.objects[(at + i) & (RING - 1)] = object
            at += RING_BATCH
            store64(&r.put, at)
        else:
            ready = load64(&r.put)
            if ready == STOPPED:
                return -1
            if ready == at:
                pause()
                continue
            while at < ready:
                give(t, kind, r.objects[at & (RING - 1)])
                at += 1
            store64(&r.got, at)
    return 0


cdef int run_job(const job* j, int index, void** objects, ring* r, uint32_t turns) noexcept nogil:
    if j.pattern == PASSED:
        if j.t.kind == CACHE:
            return run_passing(j, CACHE, index, r)
        if j.t.kind == KMALLOC:
            return run_passing(j, KMALLOC, index, r)
        return run_passing(j, MALLOC, index, r)
    if j.pattern == SAME:
        if j.t.kind == CACHE:
            return run_same(j, CACHE, turns)
        if j.t.kind == KMALLOC:
            return run_same(j, KMALLOC, turns)
        return run_same(j, MALLOC, turns)
    if j.t.kind == CACHE:
        return run_batches(j, CACHE, objects, turns)
    if j.t.kind == KMALLOC:
        return run_batches(j, KMALLOC, objects, turns)
    return run_batches(j, MALLOC, objects, turns)


cdef struct span:
    int64_t start
    int64_t end
    int64_t pad[6]              # a cache line each


cdef class ObjectAllocator:
    """
    An allocator of objects of one size; make it by one of the functions below.

    :ivar name: for people.
    """

    cdef target t
    cdef readonly str name
    cdef object keep


def of_cache(KmemCache cache not None):
    """Give a slab cache as an allocator."""
    cdef ObjectAllocator self = ObjectAllocator.__new__(ObjectAllocator)
    cache.usable()
    self.name = "kmem_cache"
    self.keep = cache
    self.t.kind = CACHE
    self.t.size = cache.object_size
    self.t.cache = cache.s
    return self


def of_kmalloc(KmemCache cache not None, uint64_t size):
    """Give kmalloc() of the machine that a cache is of."""
    cdef ObjectAllocator self = ObjectAllocator.__new__(ObjectAllocator)
    cache.usable()
    self.name = "kmalloc"
    self.keep = cache
    self.t.kind = KMALLOC
    self.t.size = size
    self.t.m = cache.s.machine
    return self


def of_malloc(str name, uint64_t allocate, uint64_t give_back, uint64_t size):
    """Give a malloc by the addresses of its two functions."""
    cdef ObjectAllocator self = ObjectAllocator.__new__(ObjectAllocator)
    if not allocate or not give_back:
        raise ValueError("both functions must be addresses")
    self.name = name
    self.t.kind = MALLOC
    self.t.size = size
    self.t.malloc = <malloc_fn>allocate
    self.t.free = <free_fn>give_back
    return self


cdef class Session:
    """
    Rows measured together: in each round every row runs once, the order rotating.

    :param threads: how many threads will call work(), each pinned by its caller.
    :param rounds: samples a row.
    """

    cdef job* jobs
    cdef span* spans
    cdef void*** objects
    cdef ring* passing
    cdef int nr_jobs, threads, rounds
    cdef int32_t arrived
    cdef int32_t stop_asked     # by anyone; thread 0 turns it into
    cdef int32_t stopped        # which changes only between two rows
    cdef uint32_t held
    cdef list allocators

    def __cinit__(self, int threads, int rounds):
        cdef int i
        if threads < 1 or rounds < 1:
            raise ValueError("threads and rounds must be positive")
        self.threads = threads
        self.rounds = rounds
        self.allocators = []
        self.jobs = <job*>calloc(MAX_JOBS, sizeof(job))
        self.spans = <span*>calloc(threads, sizeof(span))
        self.passing = <ring*>calloc(1, sizeof(ring))
        self.objects = <void***>calloc(threads, sizeof(void*))
        if (self.jobs == NULL or self.spans == NULL or self.objects == NULL
                or self.passing == NULL):
            raise MemoryError
        for i in range(threads):
            self.objects[i] = <void**>calloc(MAX_HELD, sizeof(void*))
            if self.objects[i] == NULL:
                raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(self.nr_jobs):
            free(self.jobs[i].shuffle)
            free(self.jobs[i].ns)
        if self.objects != NULL:
            for i in range(self.threads):
                free(self.objects[i])
        free(self.jobs)
        free(self.spans)
        free(self.objects)
        free(self.passing)

    def add(self, ObjectAllocator allocator not None, str pattern, int threads, uint32_t held,
            uint32_t turns, shuffle=None):
        """
        Add a row.

        :param allocator: whom to ask.
        :param pattern: a key of PATTERNS.
        :param threads: how many threads run it at once; 2 for ``"passed"``.
        :param held: objects alive at once, a thread; 1 for ``"same"``.
        :param turns: batches a sample.
        :param shuffle: permutation of ``range(held)``, for ``"random"``.
        :return: the row's number.
        """
        cdef job* j
        cdef int kind = PATTERNS[pattern]
        cdef uint32_t i
        if not 1 <= threads <= self.threads or not 0 < held <= MAX_HELD or not turns:
            raise ValueError("threads, held or turns out of range")
        if kind == PASSED and threads != 2:
            raise ValueError("passing takes two threads")
        if kind == RANDOM and sorted(shuffle or ()) != list(range(held)):
            raise ValueError(f"shuffle is no permutation of range({held})")
        if self.nr_jobs == MAX_JOBS:
            raise ValueError(f"more than {MAX_JOBS} rows")
        j = &self.jobs[self.nr_jobs]
        j.t = allocator.t
        j.pattern = kind
        j.threads = threads
        j.held = held
        j.turns = turns
        j.ns = <double*>calloc(self.rounds, sizeof(double))
        j.shuffle = <uint32_t*>calloc(held, sizeof(uint32_t))
        self.nr_jobs += 1
        if j.ns == NULL or j.shuffle == NULL:
            raise MemoryError
        if kind == RANDOM:
            for i in range(held):
                j.shuffle[i] = shuffle[i]
        self.allocators.append(allocator)
        return self.nr_jobs - 1

    def stop(self):
        """Make every work() return soon."""
        self.stop_asked = 1

    def work(self, int index):
        """
        Run every round as thread ``index``; returns when all threads have.

        :raises MemoryError: an allocator ran out in one of the rows.
        """
        cdef int i, r
        if not 0 <= index < self.threads:
            raise ValueError(f"no thread {index}")
        with nogil:
            for r in range(self.rounds):
                for i in range(self.nr_jobs):
                    if not self.turn(&self.jobs[(r + i) % self.nr_jobs], r, index):
                        break
                else:
                    continue
                break
        for i in range(self.nr_jobs):
            if self.jobs[i].failed:
                raise MemoryError("an allocator ran out while measured")

    # One row of one round: a batch that warms caches, then those that are timed.
    # Returns: whether to go on, which all threads are told alike.
    cdef bint turn(self, job* j, int round, int index) noexcept nogil:
        cdef span* s = &self.spans[index]
        cdef int64_t start
        cdef int64_t end
        cdef int i
        if index == 0:
            self.stopped = load32(&self.stop_asked)
            self.passing.put = 0
            self.passing.got = 0
        meet(&self.arrived, self.threads)
        if self.stopped:
            return False
        if index < j.threads and j.pattern != PASSED:
            j.failed |= run_job(j, index, self.objects[index], self.passing, 1)
        meet(&self.arrived, self.threads)
        if index < j.threads:
            s.start = now_ns()
            j.failed |= run_job(j, index, self.objects[index], self.passing, j.turns)
            s.end = now_ns()
        meet(&self.arrived, self.threads)
        if index == 0:
            start = self.spans[0].start
            end = self.spans[0].end
            for i in range(1, j.threads):
                start = min(start, self.spans[i].start)
                end = max(end, self.spans[i].end)
            j.ns[round] = (end - start) / (
                <double>j.turns * (RING_BATCH if j.pattern == PASSED else j.held))
        return True

    def samples(self, int row):
        """Give a row's samples: nanoseconds of one allocation and its free, a round each."""
        if not 0 <= row < self.nr_jobs:
            raise IndexError(row)
        return [self.jobs[row].ns[i] for i in range(self.rounds)]
