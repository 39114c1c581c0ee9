# The page allocator's face.
from libc.stdint cimport uint32_t, uint64_t

from realmem.types cimport machine

cdef class PageAllocator:
    cdef machine* m             # NULL once closed
    cdef uint64_t control_bytes
    cdef object owner_traces    # pfn -> text, or None
    cdef object __weakref__
    cdef readonly object machine    # the realmem.Machine, for errors' reports
    cdef int alive(self) except -1  # raises ValueError on a closed or forked machine

cdef class Page:
    cdef PageAllocator allocator
    cdef uint64_t _pfn
