# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport int64_t

from realmem._kernel.buddy cimport zone_watermark_ok
from realmem._kernel.mm_types cimport kswapd_state, mmu
from realmem._kernel.percpu cimport count_vm_event
from realmem._kernel.vmscan cimport BY_KSWAPD, reclaim_pages
from realmem.compiler cimport SEQ_CST, atomic_xchg, load_int, peek64, store_int
from realmem.types cimport (
    MAX_NR_ZONES, PAGEOUTRUN, WMARK_HIGH, ZONE_MOVABLE, machine, zone,
)

cdef extern from *:
    """
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <errno.h>
    static void rm_wait_for(int *word)
    {
        int saved = errno;
        while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == 0)
            syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
        errno = saved;
    }
    static void rm_wake(int *word)
    {
        int saved = errno;
        if (__atomic_exchange_n(word, 1, __ATOMIC_ACQ_REL) == 0)
            syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        errno = saved;
    }
    """
    void wait_for "rm_wait_for"(int* word) noexcept nogil
    void wake "rm_wake"(int* word) noexcept nogil

cdef enum:
    CLUSTER = 128               # pages between two looks at the marks
    MAX_RECLAIM_RETRIES = 16    # turns without success after which it waits for better times


cdef void wake_kswapds(machine* m, zone** zonelist) noexcept nogil:
    cdef mmu* u = <mmu*>m.mmu
    cdef int i = 0
    cdef int last = -1
    while zonelist[i] != NULL:
        if zonelist[i].nid != last:
            last = zonelist[i].nid
            if u.kswapd[last].running and u.kswapd[last].failures < MAX_RECLAIM_RETRIES:
                wake(&u.kswapd[last].wanted)
        i += 1


# Whether a zone of the node has what it is to have, and what it reserves for who cannot do with
# a higher one: what fills one zone for good is no reason to empty the others.
# Mirrors: pgdat_balanced().
cdef bint balanced(mmu* u, int nid, int mark) noexcept nogil:
    cdef zone* z
    cdef bint is_empty = True
    cdef int i
    for i in range(MAX_NR_ZONES):
        z = &u.m.zones[nid * MAX_NR_ZONES + i]
        if z.managed_pages == 0:
            continue
        if zone_watermark_ok(z, 0, z.watermark[mark], ZONE_MOVABLE, 0, peek64(&z.free_pages)):
            return True
        is_empty = False
    return is_empty


cdef void* kswapd(void* data) noexcept nogil:
    cdef kswapd_state* state = <kswapd_state*>data
    cdef mmu* u = <mmu*>state.owner
    cdef int nid = <int>(state - u.kswapd)
    cdef int64_t freed
    while True:
        wait_for(&state.wanted)
        atomic_xchg(&state.wanted, 0, SEQ_CST)      # a full barrier: `stop` was set before it
        if load_int(&state.stop):
            return NULL
        count_vm_event(u.m, PAGEOUTRUN, 1)
        while not balanced(u, nid, WMARK_HIGH) and not load_int(&state.stop):
            freed = reclaim_pages(u, nid, CLUSTER, BY_KSWAPD, MAX_NR_ZONES)
            state.pages_reclaimed += freed
            state.failures = state.failures + 1 if freed == 0 else 0
            if freed == 0:
                break


cdef void wake_to_stop(kswapd_state* state) noexcept nogil:
    store_int(&state.stop, 1)
    wake(&state.wanted)
