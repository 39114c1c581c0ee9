# The addresses of a machine's vmalloc area.
from libc.stdint cimport uint64_t

from realmem._core.mmu cimport Mmu
from realmem._core.pages cimport PageAllocator
from realmem._kernel.mm_types cimport vmap_space

cdef class VmapSpace:
    cdef vmap_space space
    cdef PageAllocator core
    cdef object paging
    cdef Mmu mmu                    # None until first used
    cdef bint closed
    cdef uint64_t start             # the kernel's address of it
    cdef uint64_t total_pages
    cdef list deferred              # areas that vfree() was asked for in atomic context
    cdef dict callers               # who made an area: its start to (code, offset in it)
    cdef readonly uint64_t base     # host address of the first byte
    cdef readonly uint64_t length   # bytes of addresses; 0 until first used

    cdef int ready(self) except -1                      # have addresses
    cdef int open(self) except -1
    cdef bint covers(self, uint64_t at) noexcept
    cdef uint64_t host(self, uint64_t addr) noexcept    # of a kernel address, and back
    cdef uint64_t kernel(self, uint64_t at) noexcept
    cdef bint in_atomic(self) noexcept
    cdef int may_sleep(self, str what) except -1

cdef uint64_t as_address(addr) except? 1                # None is 0
