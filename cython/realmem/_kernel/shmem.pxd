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
# FAULT_SIGBUS (behind the end, or it cannot be read) or FAULT_OOM, or FAULT_OK when there is none
# and none was to be made.  major_ref: whether it had to be read from a swap area.
# Mirrors: shmem_get_folio_gfp().
cdef page* shmem_get_page(address_space* object, uint64_t index, int nid, bint make,
                          int* rc_ret, bint* major_ref) noexcept nogil

# Whether the page, a file's too, is in memory, be it in the swap cache.
cdef bint shmem_in_memory(address_space* object, uint64_t index) noexcept nogil

# Swap a page out that nobody maps or has a reference to, but the object.
# Mirrors: shmem_writeout().
# Context: no lock is held.
# Returns: whether it is gone.
cdef bint shmem_swap_out(address_space* object, uint64_t index, page* p) noexcept nogil

# Read what of pages [first, last] is swapped into the swap cache.
# Mirrors: mm/madvise.c:shmem_swapin_range().
cdef void shmem_will_need(address_space* object, uint64_t first, uint64_t last) noexcept nogil

# How many of pages [first, last] are swapped.  Mirrors: shmem_partial_swap_usage().
cdef int64_t shmem_swapped(address_space* object, uint64_t first, uint64_t last) noexcept nogil

# Bring back every page that is in an area of this type.
# Context: no lock is held.  Mirrors: shmem_unuse().
# Returns: FAULT_OK, or what the first one that cannot came to.
cdef int shmem_unuse(mmu* u, int type) noexcept nogil

# Promise so many pages more (fewer, negative): 0 or -ENOMEM by the rules of overcommit.
# Mirrors: mm/util.c:__vm_enough_memory().
cdef int vm_enough_memory(mmu* u, int64_t pages, bint may_reserve,
                          int64_t total_vm) noexcept nogil
