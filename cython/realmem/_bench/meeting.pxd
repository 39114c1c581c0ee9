# What loops on several threads share: a clock, and a barrier that does not sleep at once.
from libc.stdint cimport int32_t, int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from realmem.compiler cimport SEQ_CST, atomic_add_return, load32

cdef extern from *:
    """
    #include <sched.h>
    #if defined(__x86_64__)
    #define rm_pause() __builtin_ia32_pause()
    #else
    #define rm_pause() __asm__ __volatile__("" ::: "memory")
    #endif
    """
    void pause "rm_pause"() noexcept nogil
    int sched_yield() noexcept nogil

cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec * <int64_t>1000000000 + t.tv_nsec

# Wait until every one of `threads` is here, or `cancelled` (which may be NULL) is set; `arrived`
# counts over all barriers.  It spins, since a sleeper's wake-up takes longer than a small pass,
# then yields, for the case that there are more threads than CPUs.
# Returns: whether all came.
cdef inline bint meet_unless(int32_t* arrived, int threads, int32_t* cancelled) noexcept nogil:
    cdef int32_t ticket
    cdef int32_t target_count
    cdef int turns = 0
    if threads == 1:
        return True
    ticket = atomic_add_return(arrived, 1, SEQ_CST)
    target_count = ticket + (threads - 1) - (ticket - 1) % threads
    while load32(arrived) - target_count < 0:
        if cancelled != NULL and load32(cancelled):
            return False
        turns += 1
        if turns < 2000:
            pause()
        else:
            sched_yield()
    return True

cdef inline void meet(int32_t* arrived, int threads) noexcept nogil:
    meet_unless(arrived, threads, NULL)
