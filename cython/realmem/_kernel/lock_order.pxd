# The lock order of RULES.md, checked as locks are taken: those of machines with debug=1 or more.
from libc.stdint cimport uint64_t

from realmem._kernel.host_calls cimport mutex
from realmem.compiler cimport spinlock
from realmem.types cimport machine

# From outside in: a lock may be taken while only such of lower ranks are held.
cdef enum:
    LOCK_MM = 1                 # several: by ascending id
    LOCK_ADDRESS_SPACE = 2
    LOCK_SWAP = 3
    LOCK_RMAP = 4
    LOCK_AREAS = 5
    LOCK_AREA = 6               # several: under areas_lock
    LOCK_SLAB_STATE = 7
    LOCK_DEPOT = 8              # several, and of the next: under slab_state.lock
    LOCK_SLABS = 9
    LOCK_ZONE = 10              # several: by index
    LOCK_LRU = 11               # several: by node

# Have m's lock checked from now on, if m checks any.  Nobody knows it yet.
cdef void check_spinlock(const machine* m, spinlock* lock, int rank,
                         uint64_t id=*) noexcept nogil
# The same; or it was another's before, and the caller holds it while others may want it.
cdef void check_mutex(const machine* m, mutex* lock, int rank, uint64_t id) noexcept nogil
