# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""
Loops that time page allocators from C: realmem's own and, beside it, LLFree's.

Threads are Python's, pinned by their caller; the measuring itself runs without the GIL.
"""
from libc.math cimport NAN
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from realmem._bench.meeting cimport meet, now_ns
from realmem._bench.target cimport (
    LLFREE, REALMEM, Allocator, give, take, target, touched_block,
)
from realmem._kernel.page_alloc cimport alloc_pages_bulk
from realmem._kernel.page_free cimport free_pages_bulk
from realmem.compiler cimport load32, store64
from realmem.types cimport MAX_PAGE_ORDER, PAGE_SIZE, machine, page, page_address

cdef extern from *:
    """
    #if defined(__x86_64__)
    #define rm_flush_line(p) __builtin_ia32_clflush(p)
    #define rm_flush_done() __builtin_ia32_mfence()
    #else
    #define rm_flush_line(p) (void)(p)      /* no cheap flush: touches may be warm */
    #define rm_flush_done() (void)0
    #endif
    """
    void flush_line "rm_flush_line"(const void* p) noexcept nogil
    void flush_done "rm_flush_done"() noexcept nogil

cdef enum: MAX_JOBS = 256

cdef enum:
    PAIR = 0                    # allocate one block and free it
    LIFO = 1                    # allocate `held` blocks, free them last first
    RANDOM = 2                  # ... in a fixed random order
    BULK = 3                    # alloc_pages_bulk() and free_pages_bulk() of `held` pages
    TOUCH = 4                   # as LIFO, and one cold store to each page between

PATTERNS = {"pair": PAIR, "lifo": LIFO, "random": RANDOM, "bulk": BULK, "touch": TOUCH}

# One row of a session.
cdef struct job:
    target* t
    int32_t pattern
    uint32_t order
    int32_t threads
    uint32_t held               # blocks alive at once, a thread
    uint32_t turns              # repetitions in a round
    int32_t failed
    uint32_t* shuffle           # permutation of held, RANDOM only
    double* get_ns              # a sample a round: allocating one block
    double* put_ns              # freeing one; NaN for PAIR, whose get_ns holds both


# ---- the patterns; each returns turns done, and its two phases' clock ----

# The target is copied, so that a call's arguments stand in registers, as in any caller.
cdef inline int run_pairs(const job* j, int kind, int core) noexcept nogil:
    cdef target t = j.t[0]
    cdef uint32_t order = j.order
    cdef uint32_t left = j.turns
    cdef uint64_t block
    while left:
        block = take(t, kind, order, core)
        if block == 0:
            return -1
        give(t, kind, block, order, core)
        left -= 1
    return 0


cdef inline uint32_t take_all(const job* j, int kind, int core, uint64_t* blocks) noexcept nogil:
    cdef target t = j.t[0]
    cdef uint32_t order = j.order
    cdef uint32_t held = j.held
    cdef uint32_t i
    for i in range(held):
        blocks[i] = take(t, kind, order, core)
        if blocks[i] == 0:
            return i
    return held


cdef inline void give_all(const job* j, int kind, int core, const uint64_t* blocks,
                          uint32_t n) noexcept nogil:
    cdef target t = j.t[0]
    cdef uint32_t order = j.order
    cdef uint32_t i
    if j.pattern == RANDOM and n == j.held:
        for i in range(n):
            give(t, kind, blocks[j.shuffle[i]], order, core)
    else:
        for i in range(n):
            give(t, kind, blocks[n - 1 - i], order, core)


# Store to one line of each page of each block, or send those lines out of every cache, so that
# the next round's store is a first one.
cdef inline void each_page(const job* j, const uint64_t* blocks, bint touch) noexcept nogil:
    cdef machine* m = <machine*>j.t.self
    cdef uint32_t i
    cdef uint64_t address, end
    for i in range(j.held):
        address = page_address(m, <page*>blocks[i])
        end = address + (<uint64_t>PAGE_SIZE << j.order)
        while address < end:
            if touch:
                store64(<uint64_t*>address, i)
            else:
                flush_line(<void*>address)
            address += PAGE_SIZE
    if not touch:
        flush_done()


# What one thread saw of one round: when its phases began and ended.
cdef struct span:
    int64_t start
    int64_t middle
    int64_t end
    int64_t pad[5]              # a cache line each


cdef int run_batches(const job* j, int core, uint64_t* blocks, span* s) noexcept nogil:
    cdef uint32_t n
    cdef int64_t t0, t1, t2
    cdef int64_t get_ns = 0
    cdef int64_t put_ns = 0
    cdef machine* m = <machine*>j.t.self
    s.start = now_ns()
    for _ in range(j.turns):
        t0 = now_ns()
        if j.pattern == BULK:
            n = <uint32_t>alloc_pages_bulk(m, j.t.nid, j.t.gfp, j.held, blocks)
        elif j.t.kind == REALMEM:
            n = take_all(j, REALMEM, core, blocks)
        else:
            n = take_all(j, LLFREE, core, blocks)
        if j.pattern == TOUCH and n == j.held:
            each_page(j, blocks, True)
        t1 = now_ns()
        get_ns += t1 - t0
        if j.pattern == TOUCH and n == j.held:
            each_page(j, blocks, False)
            t1 = now_ns()
        if j.pattern == BULK:
            free_pages_bulk(m, blocks, n)
        elif j.t.kind == REALMEM:
            give_all(j, REALMEM, core, blocks, n)
        else:
            give_all(j, LLFREE, core, blocks, n)
        t2 = now_ns()
        put_ns += t2 - t1
        if n != j.held:
            return -1
    # Phases are summed over the turns; what lies between them (flushing) is left out.
    s.middle = s.start + get_ns
    s.end = s.middle + put_ns
    return 0


cdef int run_job(const job* j, int core, uint64_t* blocks, span* s) noexcept nogil:
    cdef int rc
    if j.pattern != PAIR:
        return run_batches(j, core, blocks, s)
    s.start = now_ns()
    if j.t.kind == REALMEM:
        rc = run_pairs(j, REALMEM, core)
    else:
        rc = run_pairs(j, LLFREE, core)
    s.end = s.middle = now_ns()
    return rc


cdef class Session:
    """
    Rows measured together: in each round every row runs once, the order rotating.

    :param threads: how many threads will call work(), each pinned by its caller.
    :param rounds: samples a row.
    """

    cdef job* jobs
    cdef span* spans
    cdef uint64_t** blocks
    cdef int nr_jobs, threads, rounds
    cdef int32_t arrived        # threads that reached a barrier, over all barriers
    cdef int32_t stop_asked     # by anyone; thread 0 turns it into
    cdef int32_t stopped        # which changes only between two rows
    cdef uint32_t held          # the longest row's
    cdef list allocators        # keeps the targets alive

    def __cinit__(self, int threads, int rounds):
        if threads < 1 or rounds < 1:
            raise ValueError("threads and rounds must be positive")
        self.threads = threads
        self.rounds = rounds
        self.allocators = []
        self.jobs = <job*>calloc(MAX_JOBS, sizeof(job))
        self.spans = <span*>touched_block(threads * sizeof(span))
        self.blocks = <uint64_t**>calloc(threads, sizeof(void*))
        if self.jobs == NULL or self.spans == NULL or self.blocks == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(self.nr_jobs):
            free(self.jobs[i].shuffle)
            free(self.jobs[i].get_ns)
            free(self.jobs[i].put_ns)
        if self.blocks != NULL:
            for i in range(self.threads):
                free(self.blocks[i])
        free(self.jobs)
        free(self.spans)
        free(self.blocks)

    def add(self, Allocator allocator not None, str pattern, uint32_t order, int threads,
            uint32_t held, uint32_t turns, shuffle=None):
        """
        Add a row.

        :param allocator: whom to ask.
        :param pattern: a key of PATTERNS.
        :param order: log2 of the pages of a block.
        :param threads: how many threads run it at once.
        :param held: blocks alive at once, a thread; 1 for ``"pair"``.
        :param turns: repetitions a sample.
        :param shuffle: permutation of ``range(held)``, for ``"random"``.
        :return: the row's number.
        """
        cdef job* j
        cdef int kind = PATTERNS[pattern]
        cdef uint32_t i
        allocator.ready()
        if order > MAX_PAGE_ORDER or not 1 <= threads <= self.threads or not held or not turns:
            raise ValueError("order, threads, held or turns out of range")
        if kind in (BULK, TOUCH) and allocator.t.kind != REALMEM:
            raise ValueError(f"{allocator.name} can't run {pattern!r}")
        if kind == BULK and order:
            raise ValueError("bulk is of order 0")
        if kind == RANDOM and sorted(shuffle or ()) != list(range(held)):
            raise ValueError(f"shuffle is no permutation of range({held})")
        if self.nr_jobs == MAX_JOBS:
            raise ValueError(f"more than {MAX_JOBS} rows")
        j = &self.jobs[self.nr_jobs]
        j.t = &allocator.t
        j.pattern = kind
        j.order = order
        j.threads = threads
        j.held = held
        j.turns = turns
        j.get_ns = <double*>calloc(self.rounds, sizeof(double))
        j.put_ns = <double*>calloc(self.rounds, sizeof(double))
        j.shuffle = <uint32_t*>calloc(held, sizeof(uint32_t))
        self.nr_jobs += 1
        if j.get_ns == NULL or j.put_ns == NULL or j.shuffle == NULL:
            raise MemoryError
        if kind == RANDOM:
            for i in range(held):
                j.shuffle[i] = shuffle[i]
        self.held = max(self.held, held)
        self.allocators.append(allocator)
        return self.nr_jobs - 1

    def prepare(self):
        """Take the memory that work() needs; it can't fail for one thread alone then."""
        cdef int i
        for allocator in self.allocators:
            (<Allocator>allocator).ready()
        for i in range(self.threads):
            free(self.blocks[i])
            self.blocks[i] = <uint64_t*>calloc(max(self.held, 1), sizeof(uint64_t))
            if self.blocks[i] == NULL:
                raise MemoryError

    def stop(self):
        """Make every work() return soon."""
        self.stop_asked = 1

    def work(self, int index):
        """
        Run every round as thread ``index``; returns when all threads have.

        :raises MemoryError: an allocator ran out in one of the rows.
        """
        cdef int i, r, failed
        if not 0 <= index < self.threads or self.blocks[index] == NULL:
            raise ValueError(f"no thread {index}, or not prepared")
        with nogil:
            # Here, so that it lies near the thread that uses it.
            memset(self.blocks[index], 0, self.held * sizeof(uint64_t))
            for r in range(self.rounds):
                for i in range(self.nr_jobs):
                    self.turn(&self.jobs[(r + i) % self.nr_jobs], r, index)
        failed = 0
        for i in range(self.nr_jobs):
            failed |= self.jobs[i].failed
        if failed:
            raise MemoryError("an allocator ran out of blocks while measured")

    # One row of one round.  Its threads leave the first barrier together; the first of them
    # writes the sample once the second barrier has gathered all.
    cdef void turn(self, job* j, int round, int index) noexcept nogil:
        cdef int i
        cdef int64_t start, get_ns, put_ns
        cdef double per_thread
        cdef span* s
        if index == 0:
            self.stopped = load32(&self.stop_asked)
        meet(&self.arrived, self.threads)
        if self.stopped:
            return
        if index < j.threads and run_job(j, index, self.blocks[index], &self.spans[index]) < 0:
            j.failed = 1
        meet(&self.arrived, self.threads)
        if index == 0:
            # Wall clock: from the first to start to the last to end.
            start = self.spans[0].start
            for i in range(1, j.threads):
                start = min(start, self.spans[i].start)
            get_ns = 0
            put_ns = 0
            for i in range(j.threads):
                s = &self.spans[i]
                get_ns = max(get_ns, s.middle - start)
                put_ns = max(put_ns, s.end - s.middle)
            per_thread = <double>j.turns * j.held
            j.get_ns[round] = get_ns / per_thread
            j.put_ns[round] = NAN if j.pattern == PAIR else put_ns / per_thread

    def samples(self, int row):
        """
        Give a row's samples.

        :return: nanoseconds a block, a round each, of allocating and of freeing; for
            ``"pair"`` the first holds both and the second is empty.
        """
        cdef job* j
        if not 0 <= row < self.nr_jobs:
            raise IndexError(row)
        j = &self.jobs[row]
        got = [j.get_ns[i] for i in range(self.rounds)]
        if j.pattern == PAIR:
            return got, []
        return got, [j.put_ns[i] for i in range(self.rounds)]
