# Taking the lock of an address space that may have ended since somebody looked.
from libc.stdint cimport uint64_t

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_types cimport MM_LIVE, mm_struct

# Returns: whether mm is still `id` and alive, and locked.
cdef inline bint lock_live(mm_struct* mm, uint64_t id) noexcept nogil:
    mutex_lock(&mm.lock)
    if mm.id == id and mm.state == MM_LIVE:
        return True
    mutex_unlock(&mm.lock)
    return False
