# A swap area's store that is a file (or a device) of the host's.  Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport swap_store

# A store over an open descriptor, which stays the caller's.
cdef void file_store(swap_store* store_ret, int fd) noexcept nogil
