# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Look at all, then get what can fail, then take the host's mappings away (no store can be lost
# from then on: what others map of these frames is read-only), copy, replace.
from libc.errno cimport EAGAIN, EINVAL, ENOMEM, ESRCH
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from realmem._kernel.folio cimport make_entry
from realmem._kernel.host_calls cimport mutex_unlock
from realmem._kernel.huge cimport fill_huge_locked
from realmem._kernel.mm_lock cimport lock_live
from realmem._kernel.mm_types cimport (
    HOST_NONE, PMD_SHIFT, PTE_DIRTY, PTE_RW, PTE_SOFT_DIRTY, PTE_SPECIAL, PTRS_PER_TABLE,
    VM_LOCKED, VM_WRITE, is_pinned, mm_struct, mmu, pte_host, pte_pfn, pte_present, vm_area_struct,
    vma_slot,
)
from realmem._kernel.page_alloc cimport alloc_pages_node, split_page
from realmem._kernel.page_free cimport free_pages
from realmem._kernel.pgtable cimport (
    is_huge_locked, make_huge_locked, pmd_offset_locked, prepare_huge_locked, pte_offset_locked,
    set_pte_locked,
)
from realmem._kernel.tlb cimport tlb_flush_locked
from realmem._kernel.vmaindex cimport vma_find
from realmem._kernel.zap cimport munlock_page, page_add_new_anon_rmap, page_remove_rmap
from realmem.compiler cimport SEQ_CST, atomic64_add_return
from realmem.types cimport (
    GFP_FAULT, GFP_KSWAPD_RECLAIM, GFP_NOMEMALLOC, GFP_NOWARN, GFP_THISNODE,
    HPAGE_PMD_ORDER, PAGE_SHIFT, PAGE_SIZE, PG_anon, page, page_address, page_counts,
    page_to_pfn, page_zone, pfn_to_page,
)

cdef enum:
    PMD_SIZE = 1 << PMD_SHIFT
    # GFP_TRANSHUGE: it may be waited for.  Split, it is no compound page.
    COLLAPSE_GFP = (GFP_FAULT | GFP_NOMEMALLOC | GFP_NOWARN) & ~GFP_KSWAPD_RECLAIM

# How 2 MiB came out.  Mirrors: enum scan_result.
cdef enum:
    SCAN_SUCCEED = 0
    SCAN_FAIL = 1               # it ends there; as
    SCAN_PMD_NONE = 2           # ... with an empty entry for the table
    SCAN_ALLOC_HUGE_PAGE_FAIL = 3
    SCAN_PMD_NULL = 4           # no table for that entry: the rest is looked at all the same; as
    SCAN_PAGE_COUNT = 5         # ... when somebody else refers to a page

# What a look at a range's entries came to.  Mirrors: struct collapse_control.
cdef struct scan:
    int64_t load[64]            # MAX_NUMNODES: pages by node
    bint markers                # guard regions
    bint mapped                 # the host has some of it


cdef int mm_collapse(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t addr = (start + PMD_SIZE - 1) & ~<uint64_t>(PMD_SIZE - 1)
    cdef uint64_t last = end & ~<uint64_t>(PMD_SIZE - 1)
    cdef int result
    # In a range within 2 MiB the kernel expects less than none of them, and finds more.
    cdef int failure = SCAN_FAIL if addr > last else SCAN_SUCCEED
    while addr < last:
        if not lock_live(mm, id):
            return -ESRCH
        result = collapse_pmd(mm, addr)
        mutex_unlock(&mm.lock)
        if result != SCAN_SUCCEED:
            failure = result
            if result < SCAN_PMD_NULL:
                break
        addr += PMD_SIZE
    # Mirrors: madvise_collapse_errno().
    if failure == SCAN_SUCCEED:
        return 0
    if failure == SCAN_ALLOC_HUGE_PAGE_FAIL:
        return -ENOMEM
    return -EAGAIN if failure == SCAN_PAGE_COUNT else -EINVAL


cdef int collapse_pmd(mm_struct* mm, uint64_t base) noexcept nogil:
    cdef vma_slot* slot = vma_find(&mm.vmas, base)
    cdef uint64_t* pte
    cdef page* folio
    cdef scan s
    cdef int result
    if slot == NULL or slot.start > base or slot.end < base + PMD_SIZE or (
            slot.vma.vm_object != NULL or slot.vma.anon_vma == NULL):
        return SCAN_FAIL
    pte = pte_offset_locked(mm, base)
    if pte == NULL:
        return SCAN_PMD_NULL if pmd_offset_locked(mm, base) == NULL else SCAN_PMD_NONE
    if is_huge_locked(mm, base):            # the zero page, too
        return SCAN_SUCCEED
    result = look(mm, pte, &s)
    if result == SCAN_SUCCEED and is_pinned(mm, base, base + PMD_SIZE):
        result = SCAN_PAGE_COUNT            # the zero page, whose references tell nothing
    if result != SCAN_SUCCEED:
        return result
    folio = alloc_folio(mm.mmu, &s)
    if folio == NULL:
        return SCAN_ALLOC_HUGE_PAGE_FAIL
    # A guard region is found when its "swapped" entry is to be brought in: a page too late.
    if s.markers or prepare_huge_locked(mm, base) != 0:
        free_pages(mm.mmu.m, folio, HPAGE_PMD_ORDER)
        return SCAN_FAIL if s.markers else SCAN_ALLOC_HUGE_PAGE_FAIL
    replace(mm, slot.vma, base, pte, folio)
    if s.mapped:
        fill_huge_locked(mm, base)
    return SCAN_SUCCEED


# Mirrors: hpage_collapse_scan_pmd(), without khugepaged's limits.
cdef int look(mm_struct* mm, const uint64_t* pte, scan* s) noexcept nogil:
    cdef page_counts counts
    cdef page* p
    cdef int i
    memset(s, 0, sizeof(scan))
    for i in range(PTRS_PER_TABLE):
        s.mapped |= pte_host(pte[i]) != HOST_NONE
        if not pte_present(pte[i]):
            s.markers |= pte[i] != 0
            continue
        if pte[i] & PTE_SPECIAL:
            continue
        p = pfn_to_page(mm.mmu.m, pte_pfn(pte[i]))
        if not p.flags & (1 << PG_anon):
            return SCAN_FAIL
        s.load[page_zone(mm.mmu.m, p).nid] += 1
        counts.word = p.counts.word
        if counts.c.refcount != counts.c.mapcount + 1:
            return SCAN_PAGE_COUNT
    return SCAN_SUCCEED


# From a node that most of the pages lie on; from any if there is no page.
# Mirrors: hpage_collapse_find_target_node(), alloc_charge_folio().
cdef page* alloc_folio(mmu* u, const scan* s) noexcept nogil:
    cdef int64_t most = 0
    cdef page* folio = NULL
    cdef int nid
    for nid in range(u.m.nr_nodes):
        most = max(most, s.load[nid])
    if most == 0:
        folio = alloc_pages_node(u.m, 0, COLLAPSE_GFP, HPAGE_PMD_ORDER)
    for nid in range(u.m.nr_nodes):
        if folio == NULL and most > 0 and s.load[nid] == most:
            folio = alloc_pages_node(u.m, nid, COLLAPSE_GFP | GFP_THISNODE, HPAGE_PMD_ORDER)
    atomic64_add_return(&u.thp_collapse_alloc if folio != NULL else &u.thp_collapse_alloc_failed,
                        1, SEQ_CST)
    return folio


# Mirrors: __collapse_huge_page_copy(); the old frames go one by one, those that others have stay.
cdef void replace(mm_struct* mm, vm_area_struct* vma, uint64_t base, uint64_t* pte,
                  page* folio) noexcept nogil:
    cdef uint64_t value = make_entry(vma, page_to_pfn(mm.mmu.m, folio))
    cdef uint64_t old, to
    cdef page* p
    cdef int i
    value |= PTE_DIRTY | PTE_SOFT_DIRTY | (PTE_RW if vma.vm_flags & VM_WRITE else 0)
    tlb_flush_locked(mm, base, base + PMD_SIZE)
    split_page(mm.mmu.m, folio, HPAGE_PMD_ORDER)
    folio.private = 0
    for i in range(PTRS_PER_TABLE):
        old = pte[i]
        to = page_address(mm.mmu.m, folio + i)
        p = NULL
        if pte_present(old) and not old & PTE_SPECIAL:
            p = pfn_to_page(mm.mmu.m, pte_pfn(old))
            memcpy(<void*>to, <void*>page_address(mm.mmu.m, p), PAGE_SIZE)
        else:
            memset(<void*>to, 0, PAGE_SIZE)
        page_add_new_anon_rmap(mm, vma, base + (<uint64_t>i << PAGE_SHIFT), folio + i)
        set_pte_locked(mm, pte + i, value + (<uint64_t>i << PAGE_SHIFT))
        if p != NULL:
            if vma.vm_flags & VM_LOCKED:
                munlock_page(mm.mmu, p)
            page_remove_rmap(mm, p)
    make_huge_locked(mm, base, value)
