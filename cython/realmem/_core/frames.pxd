# Frames as Python sees them.
from libc.stdint cimport uint64_t

from realmem._core.machine cimport MachineCore
from realmem.types cimport page

cdef class PageFrames(MachineCore):
    cdef dict traces                # pfn -> who allocated it; None unless page_owner is on

    cdef int usable(self) except -1
    cdef page* page_at(self, object page_or_addr) except? NULL
    cdef int check_free(self, uint64_t pfn, unsigned int order) except -1
    cdef int check_allocated(self, uint64_t pfn, uint64_t end) except -1

cdef class Page:
    cdef PageFrames allocator
    cdef uint64_t _pfn

    cdef page* raw(self) except NULL
    cdef object machine(self)
    cdef page* referenced(self) except NULL

cdef class PageArray:
    cdef PageFrames allocator
    cdef uint64_t* frames
    cdef Py_ssize_t shape[1]

    cdef int truncate(self, Py_ssize_t n) except -1

cdef Page new_page(PageFrames allocator, uint64_t pfn)
cdef PageArray new_page_array(PageFrames allocator, Py_ssize_t n)
