# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_types cimport PTRS_PER_TABLE, mm_struct, mmu
from realmem._kernel.page_alloc cimport alloc_pages_node, split_page
from realmem._kernel.page_free cimport free_pages
from realmem.compiler cimport SEQ_CST, atomic64_add_return
from realmem.types cimport (
    GFP_HIGHUSER_MOVABLE, GFP_KSWAPD_RECLAIM, GFP_MOVABLE, GFP_NOMEMALLOC, GFP_NOWARN, GFP_ZERO,
    HPAGE_PMD_ORDER, PG_zero, page, page_to_pfn, pfn_to_page,
)

cdef enum:
    HUGE_ZERO_GFP = ((GFP_HIGHUSER_MOVABLE | GFP_NOMEMALLOC | GFP_NOWARN | GFP_ZERO)
                     & ~(GFP_KSWAPD_RECLAIM | GFP_MOVABLE))


cdef int huge_zero_get_locked(mm_struct* mm) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef page* made = NULL
    if mm.core.huge_zero:
        return 0
    mutex_lock(&u.rmap_lock)
    if u.huge_zero_users == 0:
        mutex_unlock(&u.rmap_lock)
        made = huge_zero_alloc(u)
        if made == NULL:
            return -ENOMEM
        mutex_lock(&u.rmap_lock)
        if u.huge_zero_users == 0:
            u.huge_zero_pfn = page_to_pfn(u.m, made)
            made = NULL
    u.huge_zero_users += 1
    mutex_unlock(&u.rmap_lock)
    mm.core.huge_zero = 1
    if made != NULL:            # somebody else was faster
        huge_zero_free(u, made)
    return 0


cdef void huge_zero_dup_locked(mm_struct* child) noexcept nogil:
    mutex_lock(&child.mmu.rmap_lock)
    child.mmu.huge_zero_users += 1
    mutex_unlock(&child.mmu.rmap_lock)
    child.core.huge_zero = 1


cdef void huge_zero_put_locked(mm_struct* mm) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef page* unused = NULL
    if not mm.core.huge_zero:
        return
    mm.core.huge_zero = 0
    mutex_lock(&u.rmap_lock)
    u.huge_zero_users -= 1
    if u.huge_zero_users == 0:
        unused = pfn_to_page(u.m, u.huge_zero_pfn)
    mutex_unlock(&u.rmap_lock)
    if unused != NULL:
        huge_zero_free(u, unused)


cdef page* huge_zero_alloc(mmu* u) noexcept nogil:
    cdef page* p = alloc_pages_node(u.m, -1, HUGE_ZERO_GFP, HPAGE_PMD_ORDER)
    cdef int i
    atomic64_add_return(&u.thp_zero_page_alloc if p != NULL else &u.thp_zero_page_alloc_failed,
                        1, SEQ_CST)
    if p != NULL:
        split_page(u.m, p, HPAGE_PMD_ORDER)
        for i in range(PTRS_PER_TABLE):
            p[i].flags |= <uint64_t>1 << PG_zero
    return p


cdef void huge_zero_free(mmu* u, page* p) noexcept nogil:
    cdef int i
    for i in range(PTRS_PER_TABLE):
        p[i].flags &= ~(<uint64_t>1 << PG_zero)
        free_pages(u.m, p + i, 0)
