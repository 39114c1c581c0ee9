# cython: language_level=3
"""What faults cost, as the kernel side noted it, in cycles; and what a bare signal costs."""
import signal
import time

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t

from realmem._core.faults cimport check_owner
from realmem._core.mmu cimport Mmu
from realmem._kernel.arch_x86_64 cimport cycles
from realmem._kernel.fault_cost cimport (
    LINEAR_BUCKETS, NR_BUCKETS, NR_COST_KINDS, NR_COST_ORDERS, NR_COST_WAYS,
)
from realmem._kernel.mm_types cimport fault_cost
from realmem._kernel.sigsegv cimport handler_probe
from realmem.compiler cimport load64
from realmem.types cimport HPAGE_PMD_ORDER

NR_PROBES = 256
CLOCK_BASE_S = 0.01             # what the cycles of a second are told from, at least

cdef list KINDS = (
    ["zero_page"] + ["anon"] * NR_COST_ORDERS
    + ["cow", "reuse", "shared", "refill", "swap", "zero_page"])


def read(Mmu mmu not None):
    """
    Give what was noted since the machine's first process.

    :return: list of (raw, kind, order, CPU's node, memory's node, count, buckets): the buckets
        are NR_BUCKETS native uint32 for each part.
    """
    cdef int64_t nodes = mmu.u.nr_fds
    cdef int64_t way, kind, cpu, memory
    cdef const fault_cost* cost
    cdef list found = []
    mmu.core.alive()
    for cpu in range(nodes):
        cost = <const fault_cost*>load64(&mmu.u.costs[cpu])
        if cost == NULL:
            continue
        for way in range(NR_COST_WAYS):
            for kind in range(NR_COST_KINDS):
                for memory in range(nodes):
                    if cost.count:
                        found.append((
                            bool(way), KINDS[kind], order_of(kind), cpu, memory, cost.count,
                            PyBytes_FromStringAndSize(<const char*>cost.buckets,
                                                      sizeof(cost.buckets))))
                    cost += 1
    return found


cdef int order_of(int64_t kind):
    if kind == NR_COST_KINDS - 1:
        return HPAGE_PMD_ORDER
    return <int>(kind - 1) if 1 <= kind <= NR_COST_ORDERS else 0


def bucket_bounds():
    """Give the least number of cycles of each bucket, and the end of the last."""
    cdef int64_t b
    return [b if b < LINEAR_BUCKETS else (8 + b % 8) << (b // 8 - 1)
            for b in range(NR_BUCKETS + 1)]


def ns_per_cycle(Mmu mmu not None):
    """Tell how long a cycle of the clock is, by the time since the machine's first process."""
    cdef double passed
    while True:
        passed = time.monotonic() - mmu.clock_s
        if passed >= CLOCK_BASE_S:
            return passed * 1e9 / <double>(cycles() - mmu.clock_cycles)
        time.sleep(CLOCK_BASE_S - passed)


def probe():
    """
    Time bare signals: a fault that brings nothing, out and back, in this thread.

    :return: list of cycles.
    """
    cdef uint64_t samples[256]
    cdef int n
    check_owner()
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGSEGV])
    try:
        n = handler_probe(samples, NR_PROBES)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return [samples[i] for i in range(n)]
