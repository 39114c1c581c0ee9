# Pointers by index, 64 to a node (compare lib/xarray.c).  The caller locks.  Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport radix_node
from realmem.types cimport machine

# The item at an index, or NULL.
cdef void* radix_load(const radix_node* root, uint64_t index) noexcept nogil
# Returns: 0, or -ENOMEM with nothing stored.
cdef int radix_store(machine* m, radix_node** root_ref, uint64_t index,
                     void* item) noexcept nogil
# Put another item where one stands.
cdef void radix_replace(radix_node* root, uint64_t index, void* item) noexcept nogil
# Take an item out; NULL when there is none.  Emptied nodes go.
cdef void* radix_erase(machine* m, radix_node** root_ref, uint64_t index) noexcept nogil
# The first item at index_ref[0] or above, whose index goes back there; NULL: none.
cdef void* radix_next(const radix_node* root, uint64_t* index_ref) noexcept nogil
