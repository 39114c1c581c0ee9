# Counters summed over the threads' areas.  Reads only; racy while others allocate.
from libc.stdint cimport int32_t, uint64_t

from realmem.types cimport machine

cdef struct pcp_stat:
    int32_t cpu
    int32_t count
    int32_t high

# pgalloc and the six NUMA counters of a zone, as counts_ret[0] and counts_ret[1..6].
cdef void sum_zone_events(machine* m, int index, uint64_t* counts_ret) noexcept nogil

# The machine-wide counters, NR_VM_EVENT_ITEMS of them.
cdef void sum_vm_events(machine* m, uint64_t* events_ret) noexcept nogil

# What each thread's lists of a zone hold: up to `most` entries; returns how many there are.
cdef int list_pcp_stats(machine* m, int index, pcp_stat* stats_ret, int most) noexcept nogil
