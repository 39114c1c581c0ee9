# Stacks of Python code by number.
from libc.stdint cimport uint32_t

cdef class StackDepot:
    cdef dict handles               # by stack
    cdef list stacks                # by handle - 1

    # The handle of the stack that calls; 0 when there is no room.
    cdef uint32_t save(self) except? 0xFFFFFFFF
