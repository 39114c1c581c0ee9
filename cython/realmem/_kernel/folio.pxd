# Anonymous memory in more than a page at a time.  Signal-safe; mm.lock held.
# Compare mm/huge_memory.c, mm/memory.c:alloc_anon_folio().
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.mm_types cimport (
    PTE_ACCESSED, PTE_NX, PTE_PRESENT, PTE_PROTNONE, PTE_USER, VM_ACCESS, VM_EXEC, VM_HUGEPAGE,
    VM_NOHUGEPAGE, mm_struct, vm_area_struct,
)
from realmem._kernel.vm_fault cimport vm_fault
from realmem.types cimport (
    GFP_DIRECT_RECLAIM, GFP_HIGHUSER_MOVABLE, GFP_KSWAPD_RECLAIM, GFP_NOMEMALLOC, GFP_NOWARN,
    PAGE_SHIFT,
)

cdef enum:
    # GFP_TRANSHUGE_LIGHT: no reclaim for it; and split, it is no compound page.
    FOLIO_GFP = ((GFP_HIGHUSER_MOVABLE | GFP_NOMEMALLOC | GFP_NOWARN)
                 & ~(GFP_DIRECT_RECLAIM | GFP_KSWAPD_RECLAIM))

# The orders that a VMA's faults may try, bit by bit.
# Mirrors: thp_vma_allowable_orders().
cdef inline uint32_t folios_wanted(const mm_struct* mm,
                                   const vm_area_struct* vma) noexcept nogil:
    cdef uint32_t orders = mm.mmu.thp_always
    if vma.vm_flags & VM_HUGEPAGE:
        orders |= mm.mmu.thp_madvise
        if mm.core.thp_disabled == 1:
            return 0
    elif vma.vm_flags & VM_NOHUGEPAGE or mm.core.thp_disabled:
        return 0
    return orders

# Serve a write fault with the largest folio that fits the VMA, meets no other entry and is to
# be had; its frames are independent of each other from then on.
# Returns: 0; -1: none, a single page it is.
cdef int anon_folio_fault(vm_fault* f) noexcept nogil

# Serve a read fault where nothing is by the huge zero page.
# Mirrors: mm/huge_memory.c:do_huge_pmd_anonymous_page(), set_huge_zero_folio().
# Returns: 0; -1: the zero page it is.
cdef int huge_zero_fault(vm_fault* f) noexcept nogil

# Serve a store to the huge zero page by 2 MiB of the process's own.
# Preconditions: a huge entry maps it at addr.
# Mirrors: do_huge_zero_wp_pmd().
# Returns: 0; -1: a single page it is.
cdef int huge_zero_wp(vm_fault* f) noexcept nogil

# vma->vm_page_prot, without the right to write.
cdef inline uint64_t make_entry(const vm_area_struct* vma, uint64_t pfn) noexcept nogil:
    cdef uint64_t entry = (pfn << PAGE_SHIFT) | PTE_USER
    if vma.vm_flags & VM_ACCESS:
        entry |= PTE_PRESENT | PTE_ACCESSED
    else:
        entry |= PTE_PROTNONE
    if not vma.vm_flags & VM_EXEC:
        entry |= <uint64_t>PTE_NX
    return entry
