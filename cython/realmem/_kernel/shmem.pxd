# Shared anonymous memory: objects whose frames are found by page.  Signal-safe.
# Compare mm/shmem.c.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport mmu, shmem
from realmem.types cimport page

# A new object of so many pages with one reference, its pages charged unless noreserve.
# Mirrors: shmem_kernel_file_setup() => shmem_acct_size().
# Returns: NULL with error_ret -ENOMEM.
cdef shmem* shmem_create(mmu* u, uint64_t pages, bint noreserve, bint may_reserve,
                         int64_t total_vm) noexcept nogil
cdef void shmem_get(shmem* object) noexcept nogil
# Drop a reference; the last one frees every frame.  Preconditions: no VMA maps it then.
cdef void shmem_put(shmem* object) noexcept nogil

# The frame of a page with a reference more, made and zeroed with `make`: NULL with rc_ret
# FAULT_SIGBUS (behind the end) or FAULT_OOM, or FAULT_OK when there is none and none was to be
# made.
# Mirrors: shmem_get_folio_gfp().
cdef page* shmem_get_page(shmem* object, uint64_t index, int nid, bint make,
                          int* rc_ret) noexcept nogil

# Take the frames [first, last] out; what processes map of them is unmapped before.
# Context: no mm.lock held.
# Mirrors: shmem_fallocate(FALLOC_FL_PUNCH_HOLE).
cdef void shmem_punch(shmem* object, uint64_t first, uint64_t last) noexcept nogil

# Promise so many pages more (fewer, negative): 0 or -ENOMEM by the rules of overcommit.
# Mirrors: mm/util.c:__vm_enough_memory().
cdef int vm_enough_memory(mmu* u, int64_t pages, bint may_reserve,
                          int64_t total_vm) noexcept nogil
