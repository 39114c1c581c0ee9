# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The slot is read while the entry, and mm.lock, keep it.  Two processes that read the same one at
# once have the same bytes: the first to come has its copy in the cache, for both.
from libc.errno cimport ESRCH
from libc.stdint cimport uint64_t

from realmem._kernel.folio cimport make_entry
from realmem._kernel.host_calls cimport mutex_unlock
from realmem._kernel.mempolicy cimport vma_alloc_pages
from realmem._kernel.mm_lock cimport lock_live
from realmem._kernel.mm_types cimport (
    FAULT_OK, FAULT_OOM, FAULT_SIGBUS, HOST_NONE, PTE_ACCESSED, PTE_DIRTY, PTE_SOFT_DIRTY,
    PTE_SWP_EXCLUSIVE, PTE_SWP_SOFT_DIRTY, TASK_SIZE, is_swap_pte, linear_page_index, mm_struct,
    mmu, vm_area_struct, vma_slot,
)
from realmem._kernel.page_free cimport put_page
from realmem._kernel.pgtable cimport PTES_READ, pte_cursor, pte_first, pte_next
from realmem._kernel.shmem cimport shmem_will_need
from realmem._kernel.swap cimport (
    swap_cache_dirty, swap_cache_fill, swap_cache_get, swap_cache_put, swap_count, swap_free,
    swap_is_only, swap_read, swap_read_ahead, swp_type,
)
from realmem._kernel.tlb cimport tlb_install_locked
from realmem._kernel.vmaindex cimport vma_find
from realmem._kernel.zap cimport page_add_anon_rmap, set_anon_exclusive
from realmem.types cimport GFP_FAULT, page, page_to_pfn, page_zone


cdef int swap_in_locked(mm_struct* mm, vm_area_struct* vma, uint64_t addr, uint64_t* pte,
                        uint64_t* entry_ret, bint* major_ref) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t swapped = pte[0]
    cdef page* p = swap_cache_get(u, swapped)
    cdef bint alone
    cdef int rc
    if p == NULL:
        p = vma_alloc_pages(mm, vma, addr, GFP_FAULT, 0, NULL)
        if p == NULL:
            return FAULT_OOM
        major_ref[0] = True
        swap_read_ahead(u, swapped, page_zone(u.m, p).nid)
        rc = swap_read(u, swapped, p)
        if rc != 0:
            put_page(u.m, p)
            return FAULT_SIGBUS
        if swap_count(u, swapped) > 1:
            p = swap_cache_put(u, swapped, p)
    alone = swapped & PTE_SWP_EXCLUSIVE != 0 or swap_is_only(u, swapped, p)
    page_add_anon_rmap(mm, vma, addr, p)
    if alone:
        set_anon_exclusive(p)
        swap_cache_dirty(u, p)
    swap_free(u, swapped)
    mm.core.swap_ents -= 1
    # What is in no area any more differs from everything that is.
    entry_ret[0] = make_entry(vma, page_to_pfn(u.m, p)) | PTE_ACCESSED | PTE_DIRTY | (
        PTE_SOFT_DIRTY if swapped & PTE_SWP_SOFT_DIRTY else 0)
    return FAULT_OK


cdef int swap_will_need(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte
    cdef vma_slot* slot
    if not lock_live(mm, id):
        return -ESRCH
    slot = vma_find(&mm.vmas, start)
    if slot != NULL and slot.vma.vm_object != NULL and start >= slot.start:
        shmem_will_need(slot.vma.vm_object, linear_page_index(slot.vma, start),
                        linear_page_index(slot.vma, end - 1))
    pte = pte_first(&c, mm, start, end, PTES_READ)
    while pte != NULL:
        if is_swap_pte(pte[0]):
            swap_cache_fill(mm.mmu, pte[0], -1)
        pte = pte_next(&c)
    mutex_unlock(&mm.lock)
    return 0


cdef int unuse_mm_locked(mm_struct* mm, int type) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte = pte_first(&c, mm, 0, <uint64_t>TASK_SIZE, PTES_READ)
    cdef uint64_t entry = 0
    cdef bint major = False
    cdef int rc = FAULT_OK
    while pte != NULL and mm.core.swap_ents > 0:
        if is_swap_pte(pte[0]) and swp_type(pte[0]) == type:
            rc = swap_in_locked(mm, vma_find(&mm.vmas, c.addr).vma, c.addr, pte, &entry, &major)
            if rc != FAULT_OK:
                break
            tlb_install_locked(mm, c.addr, pte, entry, HOST_NONE)
        pte = pte_next(&c)
    return rc
