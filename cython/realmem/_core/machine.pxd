# The face of a machine's structures: made, published to, counted, given back.
from libc.stdint cimport uint64_t

from realmem.types cimport machine, zone

cdef class MachineCore:
    cdef machine* m                 # NULL once closed
    cdef uint64_t control_bytes     # of the block that m heads
    cdef int generation             # fork_generation when made; below 0 once it is ending
    cdef int exports                # live buffers over frames
    cdef int busy                   # threads inside m without the GIL; writers hold the GIL
    cdef int atomic_contexts        # open in any thread
    cdef object after_atomic        # called when one ends; None: nothing was put off
    cdef object on_last_release     # called when a closed machine's last buffer dies
    cdef object kept                # what must outlive the structures
    cdef object __weakref__
    cdef readonly object owner      # weak reference to the realmem.Machine

    cdef void release(self)
    cdef zone* zone_at(self, int index) except NULL
    cdef int alive(self) except -1  # ValueError on a closed machine or an inherited one
    # What every public entry asks before it does anything: alive, and nothing pending.
    cdef int enter(self) except -1
