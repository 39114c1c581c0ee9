# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport uint64_t

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_types cimport (
    ANON_FLAGS, PTE_RW, PTE_SPECIAL, VM_LOCKED, address_space, is_swap_pte, linear_page_index,
    mm_struct, mmu, pinned_page, pte_pfn, pte_present, update_hiwater_rss, vm_area_struct,
    vma_cursor, vma_slot,
)
from realmem._kernel.lru cimport lru_add, lru_del, lru_disowned, lru_owned, lru_set
from realmem._kernel.page_free cimport free_pages
from realmem._kernel.pgtable cimport (
    PTES_CLEAR, PTES_READ, clear_pte_locked, pte_cursor, pte_first, pte_next,
)
from realmem._kernel.swap cimport swap_free
from realmem._kernel.tlb cimport tlb_flush_locked
from realmem._kernel.vmaindex cimport vma_first, vma_next
from realmem.compiler cimport (
    SEQ_CST, VM_BUG_ON, atomic64_add_return, atomic64_fetch_and, load64,
    unlikely,
)
from realmem.types cimport (
    PAGE_MLOCK_SHIFT, PAGE_SIZE, PG_anon, PG_dirty, PG_file, PG_lru,
    PG_mlocked, PG_swapbacked, PG_unevictable, page, page_counts,
    page_mlock_count, pfn_to_page,
)

cdef extern from *:
    """
    #define rm_try_cmpxchg(p, old, new) \
        __atomic_compare_exchange_n((p), (old), (new), 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)
    """
    bint atomic64_try_cmpxchg "rm_try_cmpxchg"(uint64_t* p, uint64_t* old,
                                               uint64_t new) noexcept nogil
    uint64_t atomic64_add "__atomic_add_fetch"(uint64_t* p, uint64_t v, int order) noexcept nogil

cdef enum:
    # page.counts as one word: refcount below, mapcount (mappings - 1) above.
    ONE_MAP = 0x100000000


cdef void zap_range_locked(mm_struct* mm, uint64_t start, uint64_t end,
                           bint drop_markers) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte
    cdef uint64_t entry
    cdef page* p
    update_hiwater_rss(mm)
    if unlikely(mm.core.locked_vm != 0):
        munlock_vmas(mm, start, end)
    tlb_flush_locked(mm, start, end)
    pte = pte_first(&c, mm, start, end, PTES_CLEAR)
    while pte != NULL:
        entry = pte[0]
        if pte_present(entry):
            clear_pte_locked(mm, pte)
            if not entry & PTE_SPECIAL:
                p = pfn_to_page(mm.mmu.m, pte_pfn(entry))
                if unlikely(p.flags & (1 << PG_file)) and entry & PTE_RW:
                    file_page_dirty(p)
                page_remove_rmap(mm, p)
        elif is_swap_pte(entry):
            clear_pte_locked(mm, pte)
            mm.core.swap_ents -= 1
            swap_free(mm.mmu, entry)
        elif drop_markers:
            clear_pte_locked(mm, pte)
        pte = pte_next(&c)


# A page that could be stored to until now: who writes it back may have looked for its places
# when the VMA was one no more.
cdef void file_page_dirty(page* p) noexcept nogil:
    cdef address_space* object = <address_space*>p.mapping
    mutex_lock(&object.lock)
    set_page_dirty_locked(object, p)
    mutex_unlock(&object.lock)


cdef void zap_object_locked(mm_struct* mm, const vm_area_struct* vma, uint64_t start,
                            uint64_t end, bint clean) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte
    cdef page* p
    update_hiwater_rss(mm)
    pte = pte_first(&c, mm, start, end, PTES_CLEAR)
    while pte != NULL:
        if pte_present(pte[0]) and not pte[0] & PTE_SPECIAL:
            p = pfn_to_page(mm.mmu.m, pte_pfn(pte[0]))
            # Others' pages, and pins of them, keep what the host has mapped.
            if p.mapping == vma.vm_object and not (
                    clean and (p.flags & (1 << PG_dirty) or pinned_page(mm, pte[0]))):
                tlb_flush_locked(mm, c.addr, c.addr + PAGE_SIZE)
                clear_pte_locked(mm, pte)
                if vma.vm_flags & VM_LOCKED:
                    munlock_page(mm.mmu, p)
                page_remove_rmap(mm, p)
        pte = pte_next(&c)


# ---- counting mappings ------------------------------------------------------

cdef void page_add_new_anon_rmap(mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                                 page* p) noexcept nogil:
    p.index = linear_page_index(vma, addr)
    p.mapping = vma.anon_vma
    p.flags |= ANON_FLAGS
    atomic64_add(&p.counts.word, ONE_MAP, SEQ_CST)
    mm.core.anon_rss += 1
    atomic64_add_return(&mm.mmu.nr_anon_mapped, 1, SEQ_CST)
    if unlikely(vma.vm_flags & VM_LOCKED):
        mlock_page(mm.mmu, p)
    lru_add(mm.mmu, p)


cdef void page_add_anon_rmap(mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                             page* p) noexcept nogil:
    mm.core.anon_rss += 1
    if lru_owned(mm.mmu, p, vma, linear_page_index(vma, addr)):
        atomic64_add_return(&mm.mmu.nr_anon_mapped, 1, SEQ_CST)
    if unlikely(vma.vm_flags & VM_LOCKED):
        mlock_page(mm.mmu, p)
    if not load64(&p.flags) & (1 << PG_lru):
        lru_add(mm.mmu, p)


cdef void page_remove_rmap(mm_struct* mm, page* p) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef page_counts now
    cdef uint64_t was
    cdef bint anon = p.flags & (1 << PG_anon) != 0
    if anon:
        mm.core.anon_rss -= 1
    elif p.flags & (1 << PG_swapbacked):
        mm.core.shmem_rss -= 1
    else:
        mm.core.file_rss -= 1
    now.word = atomic64_add(&p.counts.word, -<uint64_t>ONE_MAP, SEQ_CST)
    VM_BUG_ON(now.c.mapcount < -1, "a frame lost a mapping that it did not have")
    if now.c.mapcount == -1:
        atomic64_add_return(&u.nr_anon_mapped if anon else &u.nr_file_mapped, -1, SEQ_CST)
        if anon and unlikely(u.total_swap_pages != 0):
            lru_disowned(u, p)
        elif anon:
            was = atomic64_fetch_and(&p.flags, ~<uint64_t>ANON_FLAGS, SEQ_CST)
            if was & (1 << PG_lru):
                lru_del(u, p, was)
            p.mapping = NULL
    free_pages(u.m, p, 0)


# ---- locked in memory -------------------------------------------------------

cdef void mlock_page(mmu* u, page* p) noexcept nogil:
    count_locked(u, p, 1)


cdef void munlock_page(mmu* u, page* p) noexcept nogil:
    count_locked(u, p, -1)


# The count and the flag in one step: other address spaces lock and unlock the same page.
# Mirrors: folio->mlock_count of mm/mlock.c:__mlock_folio(), __munlock_folio().
cdef void count_locked(mmu* u, page* p, int by) noexcept nogil:
    cdef uint64_t old = load64(&p.flags)
    cdef uint64_t new
    while True:
        new = old + (<uint64_t>by << PAGE_MLOCK_SHIFT)
        new = (new & ~<uint64_t>(1 << PG_mlocked)) | (
            <uint64_t>(page_mlock_count(new) != 0) << PG_mlocked)
        if atomic64_try_cmpxchg(&p.flags, &old, new):
            break
    VM_BUG_ON(by < 0 and page_mlock_count(old) == 0, "a frame was unlocked that was not locked")
    if (old ^ new) & (1 << PG_mlocked):
        atomic64_add_return(&u.nr_mlock, by, SEQ_CST)
        # Reclaim takes a locked page off its list as it meets it; here it comes back.
        if new & (1 << PG_unevictable) and by < 0:
            lru_set(u, p, 0)


# What VMAs that stay hold locked there is about to go.  (Those that went were unlocked first.)
cdef void munlock_vmas(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef vma_cursor cursor
    cdef vma_slot* slot = vma_first(&mm.vmas, start, &cursor)
    while slot != NULL and slot.start < end:
        if slot.vma.vm_flags & VM_LOCKED:
            mlock_range_locked(mm, max(start, slot.start), min(end, slot.end), False)
        slot = vma_next(&cursor)


cdef void mlock_range_locked(mm_struct* mm, uint64_t start, uint64_t end,
                             bint on) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte = pte_first(&c, mm, start, end, PTES_READ)
    cdef page* p
    while pte != NULL:
        if pte_present(pte[0]) and not pte[0] & PTE_SPECIAL:
            p = pfn_to_page(mm.mmu.m, pte_pfn(pte[0]))
            if on:
                mlock_page(mm.mmu, p)
            else:
                munlock_page(mm.mmu, p)
        pte = pte_next(&c)
