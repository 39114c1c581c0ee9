# One handle_mm_fault for both ways in.  Signal-safe.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct, mmu
from realmem.types cimport page

# Make addr accessible for `access` (FAULT_READ, FAULT_WRITE), as its VMA allows.
# With `hardware`, the host maps the page too, and an entry that allowed the access already
# is a refill of our TLB: not a fault in Linux's sense, and not counted as one.
# Mirrors: arch/x86/mm/fault.c:do_user_addr_fault() => mm/memory.c:handle_mm_fault() =>
# do_anonymous_page(), do_wp_page().
# Preconditions: mm.lock held; mm.state == MM_LIVE.
# Returns: FAULT_*; anything but FAULT_OK left no more than empty page tables behind.
cdef int handle_mm_fault_locked(mm_struct* mm, uint64_t addr, int access,
                                bint hardware) noexcept nogil

# Give a mapped anonymous page up: one mapping and its reference less.
# Mirrors: mm/rmap.c:folio_remove_rmap_pte(), then folio_put().
# Preconditions: the flush of that mapping returned.
cdef void page_remove_rmap(mmu* u, page* p) noexcept nogil

# One mapping and one reference more, for a page that an entry under a held mm.lock maps.
cdef void page_dup_rmap(page* p) noexcept nogil

# How often a page is mapped by page tables.
cdef int64_t page_mapcount(const page* p) noexcept nogil
