# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# A region whose pages alternate in protection is a host VMA a page, and all of them go with one
# munmap(), which the limit does not refuse.
from libc.stdint cimport uint64_t
from posix.mman cimport PROT_NONE, PROT_READ

from realmem._kernel.host_calls cimport (
    host_protect, host_reserve, host_unmap, mutex, mutex_lock, mutex_unlock,
)
from realmem.types cimport PAGE_SIZE

cdef enum: NR_SPARE = 64

cdef mutex spare_lock           # guards spare; innermost
cdef uint64_t spare             # base of the region, 0 while given up


cdef void spare_take() noexcept nogil:
    cdef uint64_t at
    cdef int i
    mutex_lock(&spare_lock)
    if spare == 0:
        at = host_reserve(NR_SPARE * PAGE_SIZE, PROT_NONE)
        for i in range(0, NR_SPARE, 2):
            if at != 0 and host_protect(at + i * PAGE_SIZE, PAGE_SIZE, PROT_READ) != 0:
                host_unmap(at, NR_SPARE * PAGE_SIZE)
                at = 0
        set_spare(at)
    mutex_unlock(&spare_lock)


cdef void spare_drop() noexcept nogil:
    mutex_lock(&spare_lock)
    if spare != 0:
        host_unmap(spare, NR_SPARE * PAGE_SIZE)
        set_spare(0)
    mutex_unlock(&spare_lock)


cdef void spare_after_fork() noexcept nogil:
    spare_lock.word = 0


cdef void set_spare(uint64_t at) noexcept nogil:
    global spare
    spare = at
