# Changes of a whole address space: unmap, fork, exit, and the software accesses.
# Each is one nogil section under mm.lock.  Signal-safe, though only Python calls them.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct, vm_area_struct

# Publish a change of the VMAs; with `start` < `end`, what was mapped there is zapped in the
# same section: slots first, then the host's mappings, then entries, then frames.
# Mirrors: mm/vma.c:vms_complete_munmap_vmas() => unmap_region().
# Returns: 0; -ESRCH when the address space is no longer `id`; -ENOMEM.
cdef int mm_splice(mm_struct* mm, uint64_t id, int64_t at, int64_t removed,
                   const vm_area_struct* vmas, int64_t added, uint64_t start,
                   uint64_t end) noexcept nogil

# Share parent's pages with child, write-protected in both; child is new and empty.
# Mirrors: kernel/fork.c:dup_mmap() => mm/memory.c:copy_page_range().
# Returns: 0; -ESRCH; -ENOMEM (child is to be ended; the parent lost nothing).
cdef int mm_fork(mm_struct* parent, uint64_t parent_id, mm_struct* child) noexcept nogil

# End an address space: everything it had goes back.  Its window stays until window_reap().
# Mirrors: mm/mmap.c:exit_mmap().
# Returns: 0, or -ESRCH.
cdef int mm_exit(mm_struct* mm, uint64_t id) noexcept nogil

# Software accesses: walk the page tables and touch the frames through the direct map, under
# the lock that fork and copy-on-write take (invariant 6).
# Returns: FAULT_OK, another FAULT_* with done_ret bytes transferred, or -ESRCH.
cdef int mm_access(mm_struct* mm, uint64_t id, uint64_t addr, void* buffer, uint64_t n,
                   bint write, uint64_t* done_ret) noexcept nogil

# One access a page of [addr, addr + n); a write changes no byte.
cdef int mm_touch(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t n, bint write,
                  uint64_t* fault_ret) noexcept nogil

# Take the host's mappings of [start, end) away; the page tables stay.
cdef int mm_flush(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil

# Take the scratch pages away.
cdef int mm_flush_scratch(mm_struct* mm, uint64_t id) noexcept nogil

# The addresses from addr_ref[0] on whose entries map pfn, `n` of them at most; addr_ref[0]
# moves past what was searched.
# Returns: how many; 0 for an address space that is gone.
cdef int64_t mm_find_pfn(mm_struct* mm, uint64_t id, uint64_t pfn, uint64_t* addr_ref,
                         uint64_t* found, int64_t n) noexcept nogil

# The page-table walk of addr: physical addresses of entries, and the entries; four at most.
# Returns: how many, from the PGD down; or -ESRCH.
cdef int mm_walk(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t* address_ret,
                 uint64_t* entry_ret) noexcept nogil
