# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport ENOMEM, ESRCH
from libc.stdint cimport uint64_t

from realmem._kernel.mm_lock cimport lock_task, unlock_task
from realmem._kernel.mm_run cimport free_tables_locked
from realmem._kernel.mm_types cimport (
    HOST_NOACC, HOST_READ, PTE_ACCESSED, PTE_DIRTY, PTE_GUARD, PTE_PRESENT, PTE_PROTNONE, PTE_RW,
    PTE_SOFT_DIRTY, PTE_SPECIAL, PTE_SWP_SOFT_DIRTY, is_swap_pte, mm_struct, pte_pfn,
    pte_present, vma_slot,
)
from realmem._kernel.pgtable cimport (
    PTES_ALIKE, PTES_READ, clear_pte_locked, pte_alloc_locked,
    pte_cursor, pte_first, pte_next, set_pte_locked,
)
from realmem._kernel.rmap cimport anon_vma_prepare
from realmem._kernel.swap cimport swap_free
from realmem._kernel.tlb cimport tlb_protect_locked
from realmem._kernel.vmaindex cimport vma_find
from realmem._kernel.zap cimport page_mapcount, zap_range_locked
from realmem.compiler cimport SEQ_CST, atomic64_add_return, atomic64_fetch_and
from realmem.types cimport PAGE_SIZE, PG_anon, PG_swapbacked, page, pfn_to_page


cdef int mm_advise(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end,
                   int what) noexcept nogil:
    cdef int rc = 0
    if not lock_task(mm, id):
        return -ESRCH
    if what == ADVISE_DONTNEED:
        zap_range_locked(mm, start, end, False)
        free_tables_locked(mm, start, end)
    elif what == ADVISE_GUARD_INSTALL:
        rc = install_guards(mm, start, end)
    else:
        # The host must not store or look past an entry that says otherwise.
        if what == ADVISE_FREE or what == ADVISE_SOFT_CLEAN:
            tlb_protect_locked(mm, start, end, HOST_READ, False)
        elif what != ADVISE_GUARD_REMOVE:
            tlb_protect_locked(mm, start, end, HOST_NOACC, False)
        change_range(mm, start, end, what)
        if what == ADVISE_GUARD_REMOVE:
            free_tables_locked(mm, start, end)
    unlock_task(mm)
    return rc


# Mirrors: madvise_guard_install().
cdef int install_guards(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef vma_slot* slot = vma_find(&mm.vmas, start)
    cdef uint64_t addr = start
    cdef uint64_t* pte
    if slot == NULL:
        return -ENOMEM
    # Private memory that is no file's: so that a child inherits them, as in Linux.
    if slot.vma.vm_object == NULL and anon_vma_prepare(mm, slot.vma) != 0:
        return -ENOMEM
    zap_range_locked(mm, start, end, False)
    while addr < end:
        pte = pte_alloc_locked(mm, addr)
        if pte == NULL:
            return -ENOMEM
        set_pte_locked(mm, pte, <uint64_t>PTE_GUARD)
        addr += PAGE_SIZE
    return 0


cdef void change_range(mm_struct* mm, uint64_t start, uint64_t end, int what) noexcept nogil:
    cdef pte_cursor c
    # Markers lie in no huge page.
    cdef uint64_t* pte = pte_first(&c, mm, start, end, PTES_READ if what == ADVISE_GUARD_REMOVE
                                   else PTES_ALIKE)
    while pte != NULL:
        change(mm, pte, what)
        pte = pte_next(&c)


cdef inline void change(mm_struct* mm, uint64_t* pte, int what) noexcept nogil:
    cdef uint64_t entry = pte[0]
    cdef page* p
    if what == ADVISE_GUARD_REMOVE:
        if entry == <uint64_t>PTE_GUARD:
            clear_pte_locked(mm, pte)
        return
    if not pte_present(entry):
        if not is_swap_pte(entry):
            return
        if what == ADVISE_FREE:
            clear_pte_locked(mm, pte)
            mm.core.swap_ents -= 1
            swap_free(mm.mmu, entry)
        elif what == ADVISE_SOFT_CLEAN:
            pte[0] = entry & ~<uint64_t>PTE_SWP_SOFT_DIRTY
        return
    if what == ADVISE_SOFT_CLEAN:
        # The next store must fault, to be noticed.
        pte[0] = entry & ~<uint64_t>(PTE_SOFT_DIRTY | PTE_RW) if not entry & PTE_SPECIAL else (
            entry & ~<uint64_t>PTE_SOFT_DIRTY)
        return
    if entry & PTE_SPECIAL:
        return
    if what == ADVISE_NUMA_HINT:
        if entry & PTE_PRESENT:
            pte[0] = (entry & ~<uint64_t>PTE_PRESENT) | PTE_PROTNONE
            atomic64_add_return(&mm.mmu.numa_pte_updates, 1, SEQ_CST)
        return
    p = pfn_to_page(mm.mmu.m, pte_pfn(entry))
    if what == ADVISE_FREE:
        # Mirrors: madvise_free_pte_range().
        if p.flags & (1 << PG_anon) and page_mapcount(p) == 1 and p.counts.c.refcount == 1:
            pte[0] = entry & ~<uint64_t>(PTE_DIRTY | PTE_ACCESSED)
            atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_swapbacked), SEQ_CST)
    elif what == ADVISE_COLD:
        # What others use, too, is theirs to call cold.
        if page_mapcount(p) == 1:
            pte[0] = entry & ~<uint64_t>PTE_ACCESSED
    elif what == ADVISE_OLD or (p.flags & (1 << PG_anon) != 0) == (what == ADVISE_OLD_ANON):
        pte[0] = entry & ~<uint64_t>PTE_ACCESSED
