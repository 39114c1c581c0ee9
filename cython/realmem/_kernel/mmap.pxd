# What concerns a whole address space: fork, exit, and what Python asks of it.
# Each is one nogil section under mm.lock.  Signal-safe, though only Python calls them.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport address_space, mm_struct

# Share parent's pages with child, write-protected in both; child is new and empty.
# Mirrors: kernel/fork.c:dup_mmap() => mm/memory.c:copy_page_range().
# Returns: 0; -ESRCH; -ENOMEM (child is to be ended; the parent lost nothing).
cdef int mm_fork(mm_struct* parent, uint64_t parent_id, mm_struct* child) noexcept nogil

# End an address space: everything it had goes back.  Its window stays until window_reap().
# Mirrors: mm/mmap.c:exit_mmap().
# Returns: 0, or -ESRCH.
cdef int mm_exit(mm_struct* mm, uint64_t id) noexcept nogil

# Take the host's mappings of [start, end) away; the page tables stay.
cdef int mm_flush(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil

# Take the scratch pages away.
cdef int mm_flush_scratch(mm_struct* mm, uint64_t id) noexcept nogil

# Whether the entry of addr maps a frame.
cdef bint mm_maps(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t pfn) noexcept nogil

# The page-table walk of addr: physical addresses of entries, and the entries; four at most.
# Returns: how many, from the PGD down; or -ESRCH.
cdef int mm_walk(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t* address_ret,
                 uint64_t* entry_ret) noexcept nogil

# What a merge asks of the VMA that begins at start: its anon_vma's id, 0 for none, and whether
# that came with a fork.
cdef void mm_vma_info(mm_struct* mm, uint64_t id, uint64_t start, uint64_t* anon_id_ret,
                      bint* forked_ret) noexcept nogil

# The stacks from addr_ref[0] on, n of them at most: their ends and starts; addr_ref[0] moves on.
# Returns: how many.
cdef int64_t mm_stacks(mm_struct* mm, uint64_t id, uint64_t* addr_ref, uint64_t* ends_ret,
                       uint64_t* starts_ret, int64_t n) noexcept nogil
# Python has taken in how stacks had grown by that generation.
cdef void mm_growth_seen(mm_struct* mm, uint64_t id, uint64_t generation) noexcept nogil

# The object that [start, end) of one VMA maps, with a reference, and which of its pages; NULL:
# none.
cdef address_space* mm_object_get(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end,
                                  uint64_t* first_ret, uint64_t* last_ret) noexcept nogil

# No VMA is new any more: VM_SOFTDIRTY goes.
cdef void mm_clear_soft_dirty(mm_struct* mm, uint64_t id) noexcept nogil

# Say on which node the process's own accesses and calls run; -1: where their thread does.
# Returns: 0, or -ESRCH.
cdef int mm_run_on(mm_struct* mm, uint64_t id, int nid) noexcept nogil
