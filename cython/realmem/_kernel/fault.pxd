# One handle_mm_fault for both ways in.  Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct

# Make addr accessible for `access` (FAULT_READ, FAULT_WRITE), as its VMA allows.
# With `hardware`, the host maps the page too, and an entry that allowed the access already
# is a refill of our TLB: not a fault in Linux's sense, and not counted as one.
# Mirrors: arch/x86/mm/fault.c:do_user_addr_fault() => mm/memory.c:handle_mm_fault() =>
# do_anonymous_page(), do_shared_fault(), do_wp_page().
# Preconditions: mm.lock held; mm.state == MM_LIVE.
# Returns: FAULT_*; anything but FAULT_OK left no more than empty page tables behind.
cdef int handle_mm_fault_locked(mm_struct* mm, uint64_t addr, int access,
                                bint hardware) noexcept nogil
