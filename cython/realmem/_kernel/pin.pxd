# Pages that a host system call is to read or write through a window.
# Compare mm/gup.c:pin_user_pages().
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct
from realmem.types cimport machine

# Fault the pages [start, end) in as the process's own, take a pin on each frame (into
# pfns_ret), have the host map them and keep the mapping until mm_unpin().
# Returns: FAULT_OK; another FAULT_* with the address in fault_ret, -ESRCH or -ENOMEM (too many
# pins), and nothing is pinned.
cdef int mm_pin(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end, bint write,
                uint64_t* pfns_ret, uint64_t* fault_ret) noexcept nogil

# Let the host's mapping go, and the frames: also those that the process unmapped meanwhile.
cdef void mm_unpin(mm_struct* mm, uint64_t id, machine* m, uint64_t start, uint64_t end,
                   const uint64_t* pfns) noexcept nogil
