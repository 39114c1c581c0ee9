# Bringing a swapped page back.  Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct, vm_area_struct

# Find or read the page that an entry of the VMA stands for, and count it as mapped there; the
# caller sets the entry, before it gives up mm.lock.
# Mirrors: mm/memory.c:do_swap_page().
# Returns: FAULT_OK, with the new entry, read-only and used, in entry_ret, and in major_ref whether
# it had to be read; FAULT_OOM; FAULT_SIGBUS: it could not be read, and nothing changed.
cdef int swap_in_locked(mm_struct* mm, vm_area_struct* vma, uint64_t addr, uint64_t* pte,
                        uint64_t* entry_ret, bint* major_ref) noexcept nogil

# Read what a range has in swap areas into the cache, as far as there is memory.
# Mirrors: mm/madvise.c:swapin_walk_pmd_entry().
# Returns: 0; -ESRCH.
cdef int swap_will_need(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil

# Bring back every page of an address space that is in an area of this type.
# Returns: FAULT_OK, or what the first one that cannot came to.
cdef int unuse_mm_locked(mm_struct* mm, int type) noexcept nogil
