# A machine's vmalloc area, for faces that fall back to it.
from libc.stdint cimport uint32_t, uint64_t

from realmem._core.mm cimport Mmu
from realmem._core.pages cimport PageAllocator
from realmem._kernel.mm_types cimport vmap_space

cdef class VmallocSpace:
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

    cdef object allocate(self, size, uint32_t gfp, int nid, align)
    cdef object map_frames(self, pages, uint64_t kind, prot)
    cdef int end(self, uint64_t at, uint64_t kind, uint64_t pages) except -1
    cdef int ready(self) except -1
    cdef int open(self) except -1
    cdef bint covers(self, uint64_t at) noexcept
    cdef uint64_t host(self, uint64_t addr) noexcept
    cdef uint64_t kernel(self, uint64_t at) noexcept
    cdef bint in_atomic(self) noexcept
    cdef int may_sleep(self, str what) except -1
    cdef uint64_t as_size(self, size) except 0
    cdef uint64_t as_align(self, align) except 0
    cdef int raise_failure(self, int rc, uint64_t size, uint32_t gfp, int nid) except -1
    cdef int raise_bad(self, int rc, uint64_t at, uint64_t kind) except -1
