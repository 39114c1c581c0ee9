# The software MMU: walk the page tables and touch frames through the direct map, under the lock
# that fork and copy-on-write take (invariant 6).  No signal, no host mapping.
#
# Each returns FAULT_OK; or another FAULT_* with what was done before in done_ret; or -ESRCH.
from libc.stdint cimport uint8_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct

# Copy n bytes from or to the process.
cdef int mm_access(mm_struct* mm, uint64_t id, uint64_t addr, void* buffer, uint64_t n,
                   bint write, uint64_t* done_ret) noexcept nogil

cdef int mm_fill(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t n, int byte,
                 uint64_t* done_ret) noexcept nogil

# One byte at each of n addresses, a read or, where `writes` (may be NULL) says so, a write
# that changes nothing; done_ret counts accesses.
cdef int mm_access_all(mm_struct* mm, uint64_t id, const uint64_t* addresses,
                       const uint8_t* writes, uint64_t n, uint64_t* done_ret) noexcept nogil

# One access a page of [addr, addr + n); a write changes no byte.
cdef int mm_touch(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t n, bint write,
                  uint64_t* done_ret) noexcept nogil

# No frame was found: once the lock is given up, others' pages, and its own, can be taken back.
# Returns: FAULT_OK: the lock is held again, and the access is to be tried again; FAULT_OOM: the
# same, but nothing came of it; -ESRCH: mm is gone, and no lock held.
cdef int make_room(mm_struct* mm, uint64_t id, int* turn_ref) noexcept nogil
