# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Attempts that are made to fail on request.  Compare lib/fault-inject.c (Linux 6.18).
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.percpu cimport freeze_cpu_areas, thaw_cpu_areas
from realmem.compiler cimport spin_lock, spin_unlock, spinlock
from realmem.types cimport INJECT_PAGE_ALLOC, MACHINE_INJECT, fault_attr, machine


cdef bint should_fail(fault_attr* attr) noexcept nogil:
    cdef bint fail = False
    spin_lock(&attr.lock)
    if attr.active:
        attr.attempts += 1
        if attr.nth > 0:
            attr.nth -= 1
            # The nth and those behind it, as many as are left.
            fail = attr.nth == 0
            attr.nth += fail
        elif attr.threshold > 0:
            fail = next_random(attr) < attr.threshold
        if attr.times == 0:
            fail = False
        elif fail:
            attr.failures += 1
            attr.times -= attr.times > 0
    spin_unlock(&attr.lock)
    return fail


# splitmix64 (Steele, Lea, Flood 2014); the upper half.
cdef inline uint32_t next_random(fault_attr* attr) noexcept nogil:
    cdef uint64_t x
    attr.random += <uint64_t>0x9E3779B97F4A7C15
    x = attr.random
    x = (x ^ x >> 30) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ x >> 27) * <uint64_t>0x94D049BB133111EB
    return <uint32_t>((x ^ x >> 31) >> 32)


cdef void set_fault_attr(machine* m, int point, const fault_attr* wanted) noexcept nogil:
    cdef fault_attr* attr = &m.faults[point]
    cdef spinlock held
    freeze_cpu_areas(m)
    spin_lock(&attr.lock)
    held = attr.lock
    attr[0] = wanted[0]
    attr.lock = held
    if point == INJECT_PAGE_ALLOC:
        if attr.active:
            m.options |= MACHINE_INJECT
        else:
            m.options &= ~<uint32_t>MACHINE_INJECT
    spin_unlock(&attr.lock)
    thaw_cpu_areas(m)
