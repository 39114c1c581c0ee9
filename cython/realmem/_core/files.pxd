# A file's frames, for faces that map it.
from libc.stdint cimport uint64_t

from realmem._core.mmu cimport Mmu
from realmem._kernel.mm_types cimport address_space

cdef class Inode:
    cdef address_space* object
    cdef readonly Mmu mmu
    cdef readonly tuple key         # (device, inode number)
    cdef public int users           # calls under way that may map it

    cdef uint64_t kept              # a host mapping of it, or 0

    cdef int detach(self) except -1
