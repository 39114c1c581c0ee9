# One handle_mm_fault for both ways in.  Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct, vm_area_struct
from realmem.types cimport page

# Make addr accessible for `access` (FAULT_READ, FAULT_WRITE), as its VMA allows.
# With `hardware`, the host maps the page too, and an entry that allowed the access already
# is a refill of our TLB: not a fault in Linux's sense, and not counted as one.
# Mirrors: arch/x86/mm/fault.c:do_user_addr_fault() => mm/memory.c:handle_mm_fault() =>
# do_anonymous_page(), do_shared_fault(), do_wp_page().
# `entered` is when the signal came that brought it, in cycles; 0: none did.
# Preconditions: mm.lock held; mm.state == MM_LIVE.
# Returns: FAULT_*; anything but FAULT_OK left no more than empty page tables behind.
cdef int handle_mm_fault_locked(mm_struct* mm, uint64_t addr, int access, bint hardware,
                                uint64_t entered) noexcept nogil

# A frame for addr, mapped once, exclusive, counted, where the policy wants it: to be filled,
# with a copy of `source` if that is not NULL.  NULL without memory.
# Preconditions: the entry that is to map it is empty or another's, and set next.
cdef page* anon_page(mm_struct* mm, vm_area_struct* vma, uint64_t addr,
                     const page* source) noexcept nogil

# Make the page that a present entry maps the process's own, still read-only: FAULT_*.
cdef int unshare_page_locked(mm_struct* mm, uint64_t addr, uint64_t* pte) noexcept nogil
