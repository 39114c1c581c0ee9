# Allocation in a machine's vmalloc area, for faces that fall back to it.
from libc.stdint cimport uint32_t, uint64_t

from realmem._core.vmap_space cimport VmapSpace

cdef class VmallocSpace(VmapSpace):
    cdef object allocate(self, size, uint32_t gfp, int nid, align)
    cdef object map_frames(self, pages, uint64_t kind, prot)
    cdef int end(self, uint64_t at, uint64_t kind, uint64_t pages) except -1
    cdef int settle(self) except -1
    cdef uint64_t bounded_size(self, size) except 0
    cdef uint64_t as_align(self, align) except 0
    cdef int raise_failure(self, int rc, uint64_t size, uint32_t gfp, int nid) except -1
    cdef int raise_bad(self, int rc, uint64_t at, uint64_t kind) except -1
