# The page allocator's face, and frames as Python sees them.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._core.machine cimport MachineCore
from realmem.types cimport page

cdef class PageAllocator(MachineCore):
    cdef dict traces                # pfn -> who allocated it; None unless page_owner is on
    cdef int64_t bad_pages_seen

    # The one way in for all faces: checks, allocates, raises.
    cdef page* alloc(self, uint32_t gfp, unsigned int order, int nid,
                     bint interleave=*) except NULL
    cdef int usable(self) except -1
    cdef int may_alloc(self, uint32_t gfp) except -1
    cdef int as_nid(self, node) except -2
    cdef int check_bad_pages(self) except -1
    cdef int check_allocated(self, uint64_t pfn, uint64_t end) except -1
    cdef page* page_at(self, object page_or_addr) except? NULL
    cdef int check_free(self, uint64_t pfn, unsigned int order) except -1

cdef class Page:
    cdef PageAllocator allocator
    cdef uint64_t _pfn
    cdef page* raw(self) except NULL
    cdef object machine(self)
    cdef page* referenced(self) except NULL

cdef class PageArray:
    cdef PageAllocator allocator
    cdef readonly object pfns
