# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# A folio is one allocation and one host mapping, but its frames are split at once: each has
# counts of its own, so that copying, unmapping and freeing a part of one is nothing special.
# (Linux keeps the folio together, and what is left of one when a part is unmapped.)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.arch_x86_64 cimport clear_streaming
from realmem._kernel.huge_zero cimport huge_zero_get_locked
from realmem._kernel.mempolicy cimport policy_node, vma_alloc_pages
from realmem._kernel.mm_run cimport mm_run_locked
from realmem._kernel.mm_types cimport (
    PMD_SHIFT, PTE_DIRTY, PTE_RW, PTE_SOFT_DIRTY, PTE_SPECIAL, PTRS_PER_TABLE, is_pinned,
    mm_struct, mmu, vm_area_struct,
)
from realmem._kernel.page_alloc cimport alloc_run_pages, split_page
from realmem._kernel.pgtable cimport make_huge_locked, set_pte_locked, unmake_huge_locked
from realmem._kernel.rmap cimport anon_vma_prepare
from realmem._kernel.run cimport run_of
from realmem._kernel.tlb cimport tlb_fill_locked, tlb_flush_locked
from realmem._kernel.vm_fault cimport (
    KIND_ANON, PART_ALLOC, PART_HOST_MAP, PART_ZERO_OR_COPY, kind_known, part_done, vm_fault,
)
from realmem._kernel.zap cimport page_add_new_anon_rmap
from realmem.compiler cimport SEQ_CST, atomic64_add_return, fls
from realmem.types cimport (
    HPAGE_PMD_ORDER, PAGE_SHIFT, PAGE_SIZE, page, page_address, page_run, page_to_pfn,
)

cdef enum:
    PMD_SIZE = 1 << PMD_SHIFT


cdef int anon_folio_fault(vm_fault* f) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef vm_area_struct* vma = f.vma
    cdef uint32_t orders = folios_wanted(mm, vma)
    cdef mmu* u = mm.mmu
    cdef unsigned int order
    cdef uint64_t start, length
    cdef uint64_t* first
    cdef page* p
    while orders > 1:
        order = fls(orders)
        orders &= ~(<uint32_t>1 << order)
        length = <uint64_t>PAGE_SIZE << order
        start = f.address & ~(length - 1)
        if start < vma.vm_start or start + length > vma.vm_end:
            continue
        first = f.pte - ((f.address - start) >> PAGE_SHIFT)
        if not all_empty(first, <uint64_t>1 << order):
            continue
        if anon_vma_prepare(mm, vma) != 0:
            return -1
        p = run_folio(f, first, order)
        if p == NULL:
            p = vma_alloc_pages(mm, vma, f.address, FOLIO_GFP, order, NULL)
        count(u, order, p != NULL)
        if p == NULL:
            continue
        part_done(f, PART_ALLOC)
        clear_folio(page_address(u.m, p), length)
        part_done(f, PART_ZERO_OR_COPY)
        map_folio(mm, vma, start, first, p, order)
        if f.hardware:
            tlb_fill_locked(mm, start, start + length)
        part_done(f, PART_HOST_MAP)
        f.order = order
        return 0
    return -1


# The frames that a run keeps for a folio's pages, so that the host keeps neighbours in one VMA;
# NULL: none.  Where 2 MiB are wanted there is no room for runs either.
cdef page* run_folio(vm_fault* f, uint64_t* first, unsigned int order) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef page_run* run
    if folios_wanted(mm, f.vma) >> HPAGE_PMD_ORDER != 0 or (
            not f.hardware and run_of(mm.mmu.m, first) == NULL):
        return NULL
    run = mm_run_locked(mm, f.vma, f.address, first)
    if run == NULL:
        return NULL
    return alloc_run_pages(mm.mmu.m, run, <unsigned int>(<uint64_t>first >> 3) & 511, order,
                           policy_node(mm, f.vma, f.address, NULL), FOLIO_GFP)


cdef int huge_zero_fault(vm_fault* f) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef vm_area_struct* vma = f.vma
    cdef uint64_t start = f.address & ~<uint64_t>(PMD_SIZE - 1)
    cdef uint64_t* first = f.pte - ((f.address - start) >> PAGE_SHIFT)
    cdef uint64_t entry
    cdef int i
    if (not mm.mmu.thp_zero_page or not folios_wanted(mm, vma) & (1 << HPAGE_PMD_ORDER)
            or start < vma.vm_start or start + PMD_SIZE > vma.vm_end
            or not all_empty(first, PTRS_PER_TABLE)):
        return -1
    # As for any huge page: so that a child inherits it.
    if anon_vma_prepare(mm, vma) != 0:
        return -1
    if huge_zero_get_locked(mm) != 0:
        atomic64_add_return(&mm.mmu.thp_fault_fallback, 1, SEQ_CST)
        return -1
    entry = make_entry(vma, mm.mmu.huge_zero_pfn) | PTE_SPECIAL
    for i in range(PTRS_PER_TABLE):
        set_pte_locked(mm, first + i, entry + (<uint64_t>i << PAGE_SHIFT))
    make_huge_locked(mm, start, entry)      # without memory it stays a table
    if f.hardware:
        tlb_fill_locked(mm, start, start + PMD_SIZE)
    part_done(f, PART_HOST_MAP)
    f.order = HPAGE_PMD_ORDER
    return 0


cdef int huge_zero_wp(vm_fault* f) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef vm_area_struct* vma = f.vma
    cdef uint64_t start = f.address & ~<uint64_t>(PMD_SIZE - 1)
    cdef uint64_t length = PMD_SIZE
    cdef page* p
    # Who pinned a page of it goes on reading through the window.
    if is_pinned(mm, start, start + PMD_SIZE) or anon_vma_prepare(mm, vma) != 0:
        return -1
    p = vma_alloc_pages(mm, vma, f.address, FOLIO_GFP, HPAGE_PMD_ORDER, NULL)
    count(mm.mmu, HPAGE_PMD_ORDER, p != NULL)
    if p == NULL:
        return -1
    kind_known(f, KIND_ANON)
    part_done(f, PART_ALLOC)
    clear_folio(page_address(mm.mmu.m, p), length)
    part_done(f, PART_ZERO_OR_COPY)
    tlb_flush_locked(mm, start, start + PMD_SIZE)
    unmake_huge_locked(mm, start)
    map_folio(mm, vma, start, f.pte - ((f.address - start) >> PAGE_SHIFT), p, HPAGE_PMD_ORDER)
    if f.hardware:
        tlb_fill_locked(mm, start, start + PMD_SIZE)
    part_done(f, PART_HOST_MAP)
    f.order = HPAGE_PMD_ORDER
    return 0


cdef inline void clear_folio(uint64_t at, uint64_t length) noexcept nogil:
    if length >= <uint64_t>PMD_SIZE:
        clear_streaming(at, length)
    else:
        memset(<void*>at, 0, length)


cdef bint all_empty(const uint64_t* pte, uint64_t n) noexcept nogil:
    cdef uint64_t i
    for i in range(n):
        if pte[i] != 0:
            return False
    return True


cdef inline void count(mmu* u, unsigned int order, bint got) noexcept nogil:
    atomic64_add_return(&u.mthp_alloc[order] if got else &u.mthp_fallback[order], 1, SEQ_CST)
    if order == HPAGE_PMD_ORDER:
        atomic64_add_return(&u.thp_fault_alloc if got else &u.thp_fault_fallback, 1, SEQ_CST)


cdef void map_folio(mm_struct* mm, vm_area_struct* vma, uint64_t start, uint64_t* pte, page* p,
                    unsigned int order) noexcept nogil:
    cdef int64_t n = <int64_t>1 << order
    cdef uint64_t entry = make_entry(vma, page_to_pfn(mm.mmu.m, p))
    cdef int64_t i
    entry |= PTE_RW | PTE_DIRTY | PTE_SOFT_DIRTY
    split_page(mm.mmu.m, p, order)
    p.private = 0               # counts huge entries
    for i in range(n):
        page_add_new_anon_rmap(mm, vma, start + (<uint64_t>i << PAGE_SHIFT), p + i)
        set_pte_locked(mm, pte + i, entry + (<uint64_t>i << PAGE_SHIFT))
    if start & (PMD_SIZE - 1) == 0 and order == HPAGE_PMD_ORDER:
        make_huge_locked(mm, start, entry)      # without memory it stays a table
