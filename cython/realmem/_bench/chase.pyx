# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""
Pointer chasing: loads that each wait for the one before, so that a load's latency shows.

The cycle is laid into the memory itself: every line (one element a stride) holds the address
of the next.  Nothing can be fetched ahead, since the order is one random cycle through all lines.
"""
from libc.stdint cimport uint64_t, uintptr_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline uint64_t splitmix(uint64_t* state) noexcept nogil:
    cdef uint64_t z
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef void lay_cycle(char* base, uint64_t lines, uint64_t stride, uint64_t seed) noexcept nogil:
    # Sattolo's shuffle: swapping only with an earlier line leaves a single cycle, each of
    # the (lines - 1)! ones equally likely.  It runs in the lines themselves, so that
    # a large chase needs no second array.
    cdef uint64_t i, j, state = seed
    cdef void** here
    cdef void** there
    cdef void* swapped
    for i in range(lines):
        (<void**>(base + i * stride))[0] = base + i * stride
    i = lines - 1
    while i > 0:
        # The top 32 random bits scaled to 0 .. i - 1; the bias is below i / 2**32.
        j = ((splitmix(&state) >> 32) * i) >> 32
        here = <void**>(base + i * stride)
        there = <void**>(base + j * stride)
        swapped = here[0]
        here[0] = there[0]
        there[0] = swapped
        i -= 1


cdef void* follow(void* p, uint64_t turns) noexcept nogil:
    # Sixteen loads a turn, so that the loop's own branch hides behind them.
    while turns:
        turns -= 1
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
        p = (<void**>p)[0]
    return p


def build(uintptr_t address, uint64_t size_bytes, uint64_t stride_bytes, uint64_t seed) -> int:
    """
    Lay one random cycle through every line of a writable range.

    :param address: start of the range, aligned to 8.
    :param size_bytes: length of the range; what does not fill a stride is left alone.
    :param stride_bytes: from line to line; a multiple of 8.
    :param seed: of the order.
    :return: the number of lines.
    :raises ValueError: fewer than two lines, more than 2**32, or a bad alignment.
    """
    if stride_bytes < 8 or stride_bytes % 8 or address % 8:
        raise ValueError(f"a chase needs an address and a stride that are multiples of 8: "
                         f"{address:#x}, {stride_bytes}")
    cdef uint64_t lines = size_bytes // stride_bytes
    if lines < 2 or lines > (<uint64_t>1 << 32):
        raise ValueError(f"a chase needs 2 to 2**32 lines, not {lines}")
    with nogil:
        lay_cycle(<char*>address, lines, stride_bytes, seed)
    return lines


def walk(uintptr_t start, uint64_t limit) -> list[int]:
    """
    Give the addresses from ``start`` until the cycle closes, at most ``limit`` of them.

    :raises ValueError: the cycle did not close.
    """
    cdef void* p = <void*>start
    seen = []
    while <uint64_t>len(seen) < limit:
        seen.append(<uintptr_t>p)
        p = (<void**>p)[0]
        if <uintptr_t>p == start:
            return seen
    raise ValueError(f"no cycle through {start:#x} within {limit} steps")


def chase(uintptr_t start, uint64_t loads) -> tuple[int, int]:
    """
    Follow the cycle, timed.

    :param start: address of any line of a cycle that :func:`build` laid.
    :param loads: how many, rounded up to a multiple of 16.
    :return: nanoseconds, and the address reached; go on from there, since what was just
        followed lies in the caches.
    """
    cdef uint64_t turns = (loads + 15) // 16
    cdef uint64_t begin, end
    cdef void* p = <void*>start
    with nogil:
        begin = now_ns()
        p = follow(p, turns)
        end = now_ns()
    return end - begin, <uintptr_t>p
