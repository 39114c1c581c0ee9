# What the faces of processes ask before they do anything.
from libc.stdint cimport uint64_t

cdef int raise_pending() except -1      # this thread's forbidden accesses, if there are any
cdef int check_owner() except -1        # SIGSEGV is still ours; else take it back and say so
# Whose an address space is, by a weak reference to the realmem.Machine: for reports of its faults.
cdef int register(uint64_t mm_id, object owner) except -1
cdef int forget(uint64_t mm_id) except -1
# The exception for a fault that found no frame; its report is written late.
cdef object out_of_memory(uint64_t mm_id, str message)
