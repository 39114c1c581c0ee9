# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport ESRCH
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from realmem._kernel.host_calls cimport mutex_unlock
from realmem._kernel.huge cimport huge_bits_locked
from realmem._kernel.mm_lock cimport lock_live
from realmem._kernel.mm_types cimport (
    PMD_SHIFT, PTE_ACCESSED, PTE_DIRTY, PTE_GUARD, PTE_SOFT_DIRTY, PTE_SPECIAL,
    PTE_SWP_SOFT_DIRTY, PTRS_PER_TABLE, VM_LOCKED, VM_SOFTDIRTY, is_swap_pte, linear_page_index,
    mm_struct, pte_pfn, pte_present, vma_slot,
)
from realmem._kernel.page_free cimport put_page
from realmem._kernel.pgtable cimport (
    PTES_READ, is_huge_locked, pte_cursor, pte_first, pte_next, pte_offset_locked,
)
from realmem._kernel.shmem cimport shmem_in_memory, shmem_swapped
from realmem._kernel.swap cimport swap_cache_get, swap_count, swp_offset, swp_type
from realmem._kernel.vmaindex cimport vma_find
from realmem._kernel.zap cimport page_mapcount
from realmem.types cimport (
    PAGE_SHIFT, PAGE_SIZE, PG_anon, PG_dirty, PG_swapbacked, page, page_zone, pfn_to_page,
)

# Bits of a pagemap word (Documentation/admin-guide/mm/pagemap.rst).
cdef enum:
    PM_SOFT_DIRTY = 55
    PM_MMAP_EXCLUSIVE = 56
    PM_GUARD = 58
    PM_FILE = 61
    PM_SWAP = 62
    MAX_SWAPFILES_SHIFT = 5     # the slot stands above the area's type
    PM_PRESENT = 63


cdef int mm_range_stat(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end,
                       range_stat* stat_ret) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte
    cdef vma_slot* slot = NULL
    cdef uint64_t block = <uint64_t>-1
    cdef uint64_t seen = 0      # by a huge entry as a whole
    memset(stat_ret, 0, sizeof(range_stat))
    if not lock_live(mm, id):
        return -ESRCH
    pte = pte_first(&c, mm, start, end, PTES_READ)
    while pte != NULL:
        if c.addr >> PMD_SHIFT != block:
            block = c.addr >> PMD_SHIFT
            seen = 0
            if is_huge_locked(mm, c.addr) and not pte[0] & PTE_SPECIAL:
                stat_ret.huge += PTRS_PER_TABLE
                seen = huge_bits_locked(mm, c.addr)
        if pte_present(pte[0]) and not pte[0] & PTE_SPECIAL:
            if slot == NULL or c.addr >= slot.end:
                slot = vma_find(&mm.vmas, c.addr)
            add(mm, pte[0] | seen, slot != NULL and slot.vma.vm_flags & VM_LOCKED != 0, stat_ret)
        elif is_swap_pte(pte[0]):
            stat_ret.swap += 1
            stat_ret.swap_pss += PAGE_SIZE / max(<int64_t>swap_count(mm.mmu, pte[0]),
                                                 <int64_t>1)
        pte = pte_next(&c)
    slot = vma_find(&mm.vmas, start)
    if slot != NULL and slot.start <= start and slot.vma.vm_object != NULL:
        stat_ret.swap += shmem_swapped(slot.vma.vm_object, linear_page_index(slot.vma, start),
                                       linear_page_index(slot.vma, min(end, slot.end) - 1))
    mutex_unlock(&mm.lock)
    return 0


# Mirrors: fs/proc/task_mmu.c:smaps_account(), gather_stats().
cdef inline void add(mm_struct* mm, uint64_t entry, bint locked,
                     range_stat* s) noexcept nogil:
    cdef page* p = pfn_to_page(mm.mmu.m, pte_pfn(entry))
    cdef int64_t mapped = page_mapcount(p)
    cdef bint anon = p.flags & (1 << PG_anon) != 0
    cdef bint dirty = entry & PTE_DIRTY != 0 or p.flags & (1 << PG_dirty) != 0
    cdef int64_t share = PAGE_SIZE / max(mapped, <int64_t>1)
    s.rss += 1
    s.pss += share
    s.nodes[page_zone(mm.mmu.m, p).nid] += 1
    s.mapmax = max(s.mapmax, mapped)
    s.dirty += dirty
    if locked:
        s.pss_locked += share
    if not anon:
        if p.flags & (1 << PG_swapbacked):
            s.pss_shmem += share
        else:
            s.pss_file += share
    else:
        s.pss_anon += share
        s.anonymous += 1
        s.lazyfree += not dirty and not p.flags & (1 << PG_swapbacked)
    s.referenced += entry & PTE_ACCESSED != 0
    if dirty:
        s.pss_dirty += share
    if mapped > 1:
        if dirty:
            s.shared_dirty += 1
        else:
            s.shared_clean += 1
    elif dirty:
        s.private_dirty += 1
    else:
        s.private_clean += 1


cdef int mm_pagemap(mm_struct* mm, uint64_t id, uint64_t start, int64_t n, bint may_see,
                    uint64_t* words_ret) noexcept nogil:
    cdef vma_slot* slot = NULL
    cdef uint64_t addr = start
    cdef uint64_t* pte
    cdef int64_t i
    if not lock_live(mm, id):
        return -ESRCH
    for i in range(n):
        if slot == NULL or addr >= slot.end:
            slot = vma_find(&mm.vmas, addr)
        words_ret[i] = 0
        if slot != NULL and slot.start <= addr:
            pte = pte_offset_locked(mm, addr)
            words_ret[i] = word_of(mm, slot, pte[0] if pte != NULL else 0, may_see)
            # The huge zero page is nobody's, and so not anonymous.
            if pte != NULL and pte[0] & PTE_SPECIAL and is_huge_locked(mm, addr):
                words_ret[i] |= <uint64_t>1 << PM_FILE
        addr += PAGE_SIZE
    mutex_unlock(&mm.lock)
    return 0


cdef uint64_t word_of(mm_struct* mm, const vma_slot* slot, uint64_t entry,
                      bint may_see) noexcept nogil:
    cdef uint64_t word = 0
    cdef page* p
    if slot.vma.vm_flags & VM_SOFTDIRTY or (pte_present(entry) and entry & PTE_SOFT_DIRTY) or (
            is_swap_pte(entry) and entry & PTE_SWP_SOFT_DIRTY):
        word |= <uint64_t>1 << PM_SOFT_DIRTY
    if pte_present(entry):
        word |= <uint64_t>1 << PM_PRESENT
        if may_see:
            word |= pte_pfn(entry)
        if not entry & PTE_SPECIAL:
            p = pfn_to_page(mm.mmu.m, pte_pfn(entry))
            if not p.flags & (1 << PG_anon):
                word |= <uint64_t>1 << PM_FILE
            if page_mapcount(p) == 1:
                word |= <uint64_t>1 << PM_MMAP_EXCLUSIVE
    elif is_swap_pte(entry):
        word |= <uint64_t>1 << PM_SWAP
        if may_see:
            word |= <uint64_t>swp_type(entry) | (swp_offset(entry) << MAX_SWAPFILES_SHIFT)
    elif entry == <uint64_t>PTE_GUARD:
        word |= <uint64_t>1 << PM_GUARD
    return word


# Mirrors: mm/mincore.c:mincore_pte_range(), __mincore_unmapped_range().
cdef int mm_mincore(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end,
                    unsigned char* bytes_ret) noexcept nogil:
    cdef vma_slot* slot = NULL
    cdef uint64_t addr = start
    cdef uint64_t* pte
    cdef bint there
    if not lock_live(mm, id):
        return -ESRCH
    while addr < end:
        if slot == NULL or addr >= slot.end:
            slot = vma_find(&mm.vmas, addr)
        pte = pte_offset_locked(mm, addr)
        if pte != NULL and pte_present(pte[0]):
            there = True
        elif pte != NULL and is_swap_pte(pte[0]):
            there = in_swap_cache(mm, pte[0])
        else:                       # behind a guard region, too, the object is looked at
            there = slot != NULL and slot.start <= addr and in_object(slot, addr)
        bytes_ret[(addr - start) >> PAGE_SHIFT] = there
        addr += PAGE_SIZE
    mutex_unlock(&mm.lock)
    return 0


cdef bint in_swap_cache(mm_struct* mm, uint64_t entry) noexcept nogil:
    cdef page* p = swap_cache_get(mm.mmu, entry)
    if p == NULL:
        return False
    put_page(mm.mmu.m, p)
    return True


cdef bint in_object(const vma_slot* slot, uint64_t addr) noexcept nogil:
    return slot.vma.vm_object != NULL and shmem_in_memory(
        slot.vma.vm_object, linear_page_index(slot.vma, addr))
