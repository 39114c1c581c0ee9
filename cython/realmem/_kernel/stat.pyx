# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Counters summed over the threads' areas.  Compare mm/vmstat.c:sum_vm_events().
from libc.stdint cimport uint64_t

from realmem.compiler cimport spin_lock, spin_unlock
from realmem.types cimport NR_VM_EVENT_ITEMS, NR_VM_NUMA_EVENT_ITEMS, cpu_area, machine


cdef void sum_zone_events(machine* m, int index, uint64_t* counts_ret) noexcept nogil:
    cdef const uint64_t* folded = m.zone_events + index * (1 + NR_VM_NUMA_EVENT_ITEMS)
    cdef cpu_area* area
    cdef int i
    spin_lock(&m.areas_lock)
    for i in range(1 + NR_VM_NUMA_EVENT_ITEMS):
        counts_ret[i] = folded[i]
    area = m.areas
    while area != NULL:
        counts_ret[0] += area.pcp[index].pgalloc
        for i in range(NR_VM_NUMA_EVENT_ITEMS):
            counts_ret[1 + i] += area.pcp[index].numa[i]
        area = area.next
    spin_unlock(&m.areas_lock)


cdef void sum_vm_events(machine* m, uint64_t* events_ret) noexcept nogil:
    cdef cpu_area* area
    cdef int i
    spin_lock(&m.areas_lock)
    for i in range(NR_VM_EVENT_ITEMS):
        events_ret[i] = m.events[i]
    area = m.areas
    while area != NULL:
        for i in range(NR_VM_EVENT_ITEMS):
            events_ret[i] += area.events[i]
        area = area.next
    spin_unlock(&m.areas_lock)


cdef int list_pcp_stats(machine* m, int index, pcp_stat* stats_ret, int most) noexcept nogil:
    cdef cpu_area* area
    cdef int n = 0
    spin_lock(&m.areas_lock)
    area = m.areas
    while area != NULL:
        if n < most:
            stats_ret[n].cpu = area.cpu
            stats_ret[n].count = area.pcp[index].count
            stats_ret[n].high = area.pcp[index].high
        n += 1
        area = area.next
    spin_unlock(&m.areas_lock)
    return n
