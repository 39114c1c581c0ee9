# A slab cache as Python sees it.
from libc.stdint cimport uint32_t, uint64_t

from realmem._core.slabs cimport SlabAllocator
from realmem._kernel.slab_types cimport kmem_cache

cdef class KmemCache:
    cdef SlabAllocator allocator
    cdef kmem_cache* s              # NULL once destroyed
    cdef readonly str name
    cdef object python_ctor
    cdef int constructing           # calls of it that last
    cdef uint64_t c_ctor
    cdef readonly object flags
    cdef bint kept                  # realmem's own objects live in it
    cdef readonly uint32_t object_size

    cdef int usable(self) except -1
    cdef bint in_reach(self) noexcept       # neither closed, nor inherited, nor destroyed
    cdef int may_clear(self) except -1
    cdef void* take(self, uint32_t gfp, int nid) except? NULL
    cdef void* checked_or_constructed(self, uint32_t gfp, int nid) except NULL
    cdef int may_fail(self, uint32_t gfp, int nid) except -1
    cdef int make_slab(self, uint32_t gfp, int nid) except -1
    cdef int free_debugged(self, uint64_t addr) except -1
    cdef int free_each(self, const uint64_t[::1] addrs) except -1
