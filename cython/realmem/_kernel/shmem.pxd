# Shared anonymous memory.  Signal-safe.
# Compare mm/shmem.c.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport address_space, mmu
from realmem.types cimport page

# A new object of so many pages with one reference, its pages charged unless noreserve.
# Mirrors: shmem_kernel_file_setup() => shmem_acct_size().
# Returns: NULL with error_ret -ENOMEM.
cdef address_space* shmem_create(mmu* u, uint64_t pages, bint noreserve, bint may_reserve,
                                 int64_t total_vm) noexcept nogil

# The frame of a page with a reference more, made and zeroed with `make`: NULL with rc_ret
# FAULT_SIGBUS (behind the end) or FAULT_OOM, or FAULT_OK when there is none and none was to be
# made.
# Mirrors: shmem_get_folio_gfp().
cdef page* shmem_get_page(address_space* object, uint64_t index, int nid, bint make,
                          int* rc_ret) noexcept nogil

# Promise so many pages more (fewer, negative): 0 or -ENOMEM by the rules of overcommit.
# Mirrors: mm/util.c:__vm_enough_memory().
cdef int vm_enough_memory(mmu* u, int64_t pages, bint may_reserve,
                          int64_t total_vm) noexcept nogil
