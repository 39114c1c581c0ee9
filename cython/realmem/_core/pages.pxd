# The page allocator's face.
from libc.stdint cimport int64_t, uint32_t

from realmem._core.frames cimport PageFrames
from realmem.types cimport page

cdef class PageAllocator(PageFrames):
    cdef int64_t bad_pages_seen

    # The one way in for all faces: checks, allocates, raises.
    cdef page* alloc(self, uint32_t gfp, unsigned int order, int nid,
                     bint interleave=*) except NULL
    cdef int may_alloc(self, uint32_t gfp) except -1
    cdef int as_nid(self, node) except -2
    cdef int check_bad_pages(self) except -1
