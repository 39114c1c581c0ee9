# The life of an address space, for faces of what is done with it.
from libc.stdint cimport uint64_t

from realmem._core.mmu cimport Mmu
from realmem._kernel.mm_types cimport mm_struct, window

cdef class Space:
    cdef mm_struct* mm
    cdef readonly uint64_t id
    cdef readonly Mmu mmu
    cdef readonly int pid
    cdef readonly uint64_t user_start   # of the first window
    cdef readonly uint64_t length
    cdef bint ended

    cdef int alive(self) except -1      # what every public entry asks before it does anything
    cdef window* window_at(self, uint64_t addr, uint64_t length) except NULL
    # 0, or the exception of a -errno.
    cdef int check_rc(self, int rc) except -1
    # 0, or the exception of a FAULT_* or -errno.
    cdef int raise_fault(self, int rc, uint64_t addr, bint write, uint64_t done) except -1
