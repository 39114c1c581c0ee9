from libc.stdint cimport uint64_t

from realmem._core.mmu cimport Mmu
from realmem._core.space cimport Space

cdef class SwapArea:
    cdef readonly Mmu mmu
    cdef readonly int type
    cdef readonly int prio
    cdef int fd
    cdef uint64_t max
    cdef uint64_t map_bytes
    cdef uint64_t cache_bytes

    cdef void take_pages(self, bint on) noexcept
    cdef int bring_back(self, Space space) except -1
