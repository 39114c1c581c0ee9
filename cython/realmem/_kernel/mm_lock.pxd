# Taking the lock of an address space that may have ended since somebody looked.
from libc.stdint cimport uint64_t

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_types cimport MM_LIVE, mm_struct
from realmem._kernel.percpu cimport area_run_on
from realmem.compiler cimport unlikely

# Returns: whether mm is still `id` and alive, and locked.
cdef inline bint lock_live(mm_struct* mm, uint64_t id) noexcept nogil:
    mutex_lock(&mm.lock)
    if mm.id == id and mm.state == MM_LIVE:
        return True
    mutex_unlock(&mm.lock)
    return False

# The same for what the process does itself: until unlock_task(), the calling thread takes
# memory as the node would where the process is said to run.
cdef inline bint lock_task(mm_struct* mm, uint64_t id) noexcept nogil:
    if not lock_live(mm, id):
        return False
    if unlikely(mm.core.owner.nid >= 0):
        area_run_on(mm.mmu.m, mm.core.owner.nid)
    return True

cdef inline void unlock_task(mm_struct* mm) noexcept nogil:
    if unlikely(mm.core.owner.nid >= 0):
        area_run_on(mm.mmu.m, -1)
    mutex_unlock(&mm.lock)
