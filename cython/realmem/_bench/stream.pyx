# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""
Streaming kernels: how fast bytes come and go when nothing waits for anything.

A :class:`Gang` is a number of threads that run the same kernel on their own slices of three
arrays, each pass starting together.
"""
from libc.stdint cimport int32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from realmem._bench.meeting cimport meet_unless, now_ns

cdef extern from *:
    """
    #include <sys/resource.h>
    static inline long rm_preemptions(void)
    {
        struct rusage usage;
        return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_nivcsw;
    }
    """
    # Arrays of one kernel never overlap; without this promise the compiler checks at run time,
    # and does not make a copy what STREAM's copy is (a memcpy).
    ctypedef double* array_t "double *__restrict__"
    long preemptions "rm_preemptions"() noexcept nogil      # of the calling thread, so far
    int load_int "__atomic_load_n"(int* p, int order) noexcept nogil
    void store_int "__atomic_store_n"(int* p, int value, int order) noexcept nogil
    int add_return "__atomic_add_fetch"(int* p, int value, int order) noexcept nogil
    enum: ACQUIRE "__ATOMIC_ACQUIRE"
    enum: RELEASE "__ATOMIC_RELEASE"
    enum: ACQ_REL "__ATOMIC_ACQ_REL"

# name -> (number, bytes moved for each element); as STREAM counts them, so a store's
# read for ownership is not counted.
cdef enum:
    READ
    WRITE
    COPY
    SCALE
    ADD
    TRIAD

KERNELS = {
    "read": (READ, 8),
    "write": (WRITE, 8),
    "copy": (COPY, 16),
    "scale": (SCALE, 16),
    "add": (ADD, 24),
    "triad": (TRIAD, 24),
}

cdef extern from *:
    """
    #define RM_SCALAR 3.0
    """
    const double SCALAR "RM_SCALAR"


ctypedef uint64_t (*kernel_t)(
    array_t a, array_t b, array_t c, uint64_t n
) noexcept nogil


cdef uint64_t read_all(array_t a, array_t b, array_t c, uint64_t n) noexcept nogil:
    # Integers: a sum of doubles must keep its order, which would measure the adder instead.
    cdef const uint64_t* words = <const uint64_t*>a
    cdef uint64_t i, total = 0
    for i in range(n):
        total += words[i]
    return total


cdef uint64_t write_all(array_t a, array_t b, array_t c, uint64_t n) noexcept nogil:
    cdef uint64_t i
    for i in range(n):
        a[i] = 1.0
    return 0


cdef uint64_t copy(array_t a, array_t b, array_t c, uint64_t n) noexcept nogil:
    cdef uint64_t i
    for i in range(n):
        c[i] = a[i]
    return 0


cdef uint64_t scale(array_t a, array_t b, array_t c, uint64_t n) noexcept nogil:
    cdef uint64_t i
    for i in range(n):
        b[i] = SCALAR * c[i]
    return 0


cdef uint64_t add(array_t a, array_t b, array_t c, uint64_t n) noexcept nogil:
    cdef uint64_t i
    for i in range(n):
        c[i] = a[i] + b[i]
    return 0


cdef uint64_t triad(array_t a, array_t b, array_t c, uint64_t n) noexcept nogil:
    cdef uint64_t i
    for i in range(n):
        a[i] = b[i] + SCALAR * c[i]
    return 0


# Called through pointers, so that none is inlined: inlining loses the promise above.
cdef kernel_t[6] functions
functions[READ] = read_all
functions[WRITE] = write_all
functions[COPY] = copy
functions[SCALE] = scale
functions[ADD] = add
functions[TRIAD] = triad


cdef class Gang:
    """
    Threads that run kernels in step.

    Each thread calls :meth:`work` with its own rank; the call returns when all have finished.

    :param threads: how many will call :meth:`work`.
    :param kernels: numbers of KERNELS, run one after the other in every pass.
    :param passes: how often.
    :param retries: how often a step is done again if one of the threads had to leave its CPU to
        another program meanwhile; running a kernel again changes nothing.
    """

    cdef int threads
    cdef int32_t arrived
    cdef int32_t cancelled
    cdef int passes
    cdef int nr_kernels
    cdef int attempts               # at most, for each step
    cdef int* kernels
    cdef int* disturbed             # passes x nr_kernels x attempts: threads preempted in it
    cdef double* begins             # threads x passes x nr_kernels: each thread writes its own
    cdef double* ends
    cdef uint64_t total             # keeps what the reading kernel found

    def __cinit__(self, int threads, kernels, int passes, int retries=0):
        if threads < 1 or passes < 1 or retries < 0 or not kernels:
            raise ValueError("a gang needs at least a thread, a pass and a kernel")
        self.threads = threads
        self.passes = passes
        self.attempts = retries + 1
        self.nr_kernels = <int>len(kernels)
        self.kernels = <int*>calloc(self.nr_kernels, sizeof(int))
        cdef size_t count = <size_t>threads * passes * self.nr_kernels
        self.begins = <double*>calloc(count, sizeof(double))
        self.ends = <double*>calloc(count, sizeof(double))
        self.disturbed = <int*>calloc(count * self.attempts, sizeof(int))
        if NULL in (self.kernels, self.begins, self.ends, self.disturbed):
            raise MemoryError
        for i, kernel in enumerate(kernels):
            if not READ <= kernel <= TRIAD:
                raise ValueError(f"no kernel {kernel}")
            self.kernels[i] = kernel

    def __dealloc__(self):
        free(self.kernels)
        free(self.begins)
        free(self.ends)
        free(self.disturbed)

    cdef bint meet(self) noexcept nogil:
        return meet_unless(&self.arrived, self.threads, &self.cancelled)

    cdef bint one_step(
        self, int rank, size_t step, double* a, double* b, double* c, uint64_t elements,
        uint64_t* found
    ) noexcept nogil:
        # Run one kernel of one pass; give False if the gang is cancelled.
        cdef size_t at = rank * <size_t>self.passes * self.nr_kernels + step
        cdef kernel_t run = functions[self.kernels[step % self.nr_kernels]]
        cdef int* disturbed = self.disturbed + step * self.attempts
        cdef int attempt
        cdef long before
        for attempt in range(self.attempts):
            before = preemptions()
            if not self.meet():
                return False
            self.begins[at] = 1e-9 * now_ns()
            found[0] += run(a, b, c, elements)
            self.ends[at] = 1e-9 * now_ns()
            if attempt == self.attempts - 1:
                return True
            if preemptions() != before:
                add_return(&disturbed[attempt], 1, ACQ_REL)
            if not self.meet():             # all have said whether they were disturbed
                return False
            if load_int(&disturbed[attempt], ACQUIRE) == 0:
                return True
        return True

    def work(self, int rank, uintptr_t a, uintptr_t b, uintptr_t c, uint64_t elements) -> None:
        """
        Run every pass on this thread's slice.

        :param rank: 0 .. threads - 1.
        :param a: address of its slice of the first array; b, c: of the others.
        :param elements: doubles in the slice.
        :raises ValueError: no such rank.
        """
        cdef size_t step, steps = <size_t>self.passes * self.nr_kernels
        cdef uint64_t found = 0
        if not 0 <= rank < self.threads:
            raise ValueError(f"no rank {rank} in a gang of {self.threads}")
        with nogil:
            for step in range(steps):
                if not self.one_step(rank, step, <double*>a, <double*>b, <double*>c, elements,
                                     &found):
                    break
        if rank == 0:
            self.total = found

    def cancel(self) -> None:
        """Let threads that wait return: one of the gang will not come."""
        store_int(<int*>&self.cancelled, 1, RELEASE)

    def times(self) -> list[list[float]]:
        """
        Give the seconds of each pass: one list a kernel, in the order of the kernels.

        A pass lasts from the first thread's start to the last one's end: a thread that was
        preempted at its start has made the others wait, not the pass shorter.
        """
        cdef size_t at, steps = <size_t>self.passes * self.nr_kernels
        cdef double begin, end
        times = [[] for _ in range(self.nr_kernels)]
        for step in range(steps):
            begin, end = self.begins[step], self.ends[step]
            for rank in range(1, self.threads):
                at = rank * steps + step
                begin = min(begin, self.begins[at])
                end = max(end, self.ends[at])
            times[step % self.nr_kernels].append(end - begin)
        return times
