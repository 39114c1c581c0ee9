# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport (
    GUP_PIN_COUNTING_BIAS, HOST_NONE, PMD_SHIFT, PTE_ACCESSED, PTE_DIRTY, PTE_HOST_MASK, PTE_RW,
    PTE_SOFT_DIRTY, PTE_SPECIAL, PTRS_PER_TABLE, is_pinned, mm_struct, pte_pfn,
    pte_with_host,
)
from realmem._kernel.pgtable cimport (
    clear_pte_locked, make_huge_locked, prepare_huge_locked, pte_offset_locked, set_pte_locked,
    split_huge_locked, sync_huge_locked, unmake_huge_locked,
)
from realmem._kernel.tlb cimport tlb_fill_locked, tlb_flush_locked
from realmem._kernel.zap cimport page_dup_rmap, set_anon_exclusive
from realmem.compiler cimport BUG, load64
from realmem.types cimport PG_anon_exclusive, page, pfn_to_page

cdef enum:
    ONE_OWNER = 1               # page.counts: refcount 1, mapcount 0
    PMD_SIZE = 1 << PMD_SHIFT
    USED = PTE_ACCESSED | PTE_DIRTY | PTE_SOFT_DIRTY


cdef inline uint64_t huge_base(uint64_t addr) noexcept nogil:
    return addr & ~<uint64_t>(PMD_SIZE - 1)


cdef bint copy_huge_locked(mm_struct* parent, mm_struct* child, uint64_t base,
                           uint64_t* to) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(parent, base)
    cdef page* p = pfn_to_page(parent.mmu.m, pte_pfn(pte[0]))
    cdef bint zero = pte[0] & PTE_SPECIAL != 0
    cdef uint64_t entry
    cdef int i
    if (parent.nr_pins != 0 and not zero and one_pinned(p)) or (
            prepare_huge_locked(child, base) != 0):
        split_huge_locked(parent, base)
        return False
    for i in range(PTRS_PER_TABLE):
        entry = pte[i] & ~<uint64_t>PTE_RW
        pte[i] = entry
        if not zero:
            page_dup_rmap(p + i)
        # It was not used through the child's yet.
        set_pte_locked(child, to + i, entry & ~<uint64_t>(PTE_HOST_MASK | PTE_ACCESSED))
    if not zero:
        child.core.anon_rss += PTRS_PER_TABLE
    make_huge_locked(child, base, to[0])
    sync_huge_locked(child, base)
    sync_huge_locked(parent, base)
    return True


cdef bint one_pinned(const page* p) noexcept nogil:
    cdef int i
    for i in range(PTRS_PER_TABLE):
        if p[i].counts.c.refcount >= GUP_PIN_COUNTING_BIAS:
            return True
    return False


cdef void move_huge_locked(mm_struct* mm, uint64_t base, uint64_t new,
                           uint64_t* to) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(mm, base)
    cdef uint64_t entry
    cdef int i
    unmake_huge_locked(mm, base)
    for i in range(PTRS_PER_TABLE):
        entry = pte[i]
        clear_pte_locked(mm, pte + i)
        set_pte_locked(mm, to + i, pte_with_host(entry, HOST_NONE) | PTE_SOFT_DIRTY)
    if make_huge_locked(mm, new, to[0]) != 0:
        BUG("a page table was not set aside")
    sync_huge_locked(mm, new)


# Nobody can take a page that was found to be ours alone: that needs an entry that maps it, and
# the only one is under our lock.
cdef bint reuse_huge_locked(mm_struct* mm, uint64_t addr, bint write) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(mm, huge_base(addr))
    cdef page* p = pfn_to_page(mm.mmu.m, pte_pfn(pte[0]))
    cdef int i
    if pte[0] & PTE_SPECIAL:
        return False
    for i in range(PTRS_PER_TABLE):
        if not p[i].flags & (1 << PG_anon_exclusive) and load64(&p[i].counts.word) != ONE_OWNER:
            return False
    for i in range(PTRS_PER_TABLE):
        set_anon_exclusive(p + i)
        if write:
            pte[i] |= PTE_RW | USED
    sync_huge_locked(mm, huge_base(addr))
    return True


cdef void fill_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef uint64_t base = huge_base(addr)
    cdef uint64_t* pte = pte_offset_locked(mm, base)
    cdef int i
    for i in range(PTRS_PER_TABLE):
        if pte[i] & (PTE_RW | PTE_DIRTY) == PTE_RW:
            return
    if not is_pinned(mm, base, base + PMD_SIZE):
        tlb_flush_locked(mm, base, base + PMD_SIZE)
        tlb_fill_locked(mm, base, base + PMD_SIZE)


cdef uint64_t huge_bits_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(mm, huge_base(addr))
    cdef uint64_t seen = 0
    cdef int i
    for i in range(PTRS_PER_TABLE):
        seen |= pte[i]
    return seen & USED
