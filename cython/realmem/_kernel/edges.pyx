# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# An edge is a pair of neighbouring pages that the host keeps in different VMAs; a window
# takes edges + 1 of them.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport PMD_SHIFT, mmu, pte_pfn, window, window_of
from realmem._kernel.pgtable cimport next_table_locked, pte_offset_locked
from realmem._kernel.run cimport run_of
from realmem.compiler cimport likely
from realmem.types cimport PAGEBLOCK_ORDER, PAGE_SIZE, page_zone, pfn_to_page

cdef enum:
    GIB = 1 << 30
    PAGEBLOCK_PAGES = 1 << PAGEBLOCK_ORDER


# Whether the host keeps two neighbouring pages in different VMAs.
cdef inline bint is_edge(mmu* u, uint64_t left, uint64_t right) noexcept nogil:
    cdef unsigned int a = pte_host(left)
    if a != pte_host(right) or (left ^ right) & <uint64_t>BY_UFFD:
        return True
    if a == HOST_NONE:
        return False
    if pte_pfn(left) + 1 != pte_pfn(right):
        return True
    if likely(pte_pfn(right) & (PAGEBLOCK_PAGES - 1)):
        return False                    # zones, and so nodes, are whole pageblocks
    return (page_zone(u.m, pfn_to_page(u.m, pte_pfn(left))).nid
            != page_zone(u.m, pfn_to_page(u.m, pte_pfn(right))).nid)


cdef inline uint64_t view_at(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(mm, addr)
    return host_view(run_of(mm.mmu.m, pte), pte) if pte != NULL else 0


# What lies behind a window's ends is never one host VMA with what it holds.
cdef inline uint64_t view_left_of(mm_struct* mm, uint64_t addr) noexcept nogil:
    if addr & (GIB - 1) == 0 and window_of(mm, addr - PAGE_SIZE) != window_of(mm, addr):
        return 0
    return view_at(mm, addr - PAGE_SIZE)


cdef inline uint64_t view_right_of(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef uint64_t next = addr + PAGE_SIZE
    if next & (GIB - 1) == 0 and window_of(mm, next) != window_of(mm, addr):
        return 0
    return view_at(mm, next)


cdef int edges_around(mm_struct* mm, uint64_t addr, uint64_t* pte) noexcept nogil:
    cdef unsigned int i = <unsigned int>(addr >> PAGE_SHIFT) & 511
    cdef const page_run* run = run_of(mm.mmu.m, pte)
    cdef uint64_t here = host_view(run, pte)
    cdef uint64_t left, right
    if likely(i > 0 and i < 511):
        left = host_view(run, pte - 1)
        right = host_view(run, pte + 1)
    else:
        left = view_left_of(mm, addr)
        right = view_right_of(mm, addr)
    return is_edge(mm.mmu, left, here) + is_edge(mm.mmu, here, right)


cdef int64_t edges_in(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef window* w = mm.windows
    cdef window* last = w + mm.nr_windows
    cdef int64_t edges = 0
    cdef uint64_t first, stop
    while w != last:
        first = max(start, w.user_start)
        stop = min(end, w.user_start + w.length)
        if first < stop:
            edges += edges_of_window(mm, w, first, stop)
        w += 1
    return edges


cdef int64_t edges_of_window(mm_struct* mm, const window* w, uint64_t start,
                             uint64_t end) noexcept nogil:
    cdef uint64_t before = view_at(mm, start - PAGE_SIZE) if start > w.user_start else 0
    cdef uint64_t addr = start
    cdef bint at_end = end == w.user_start + w.length
    cdef uint64_t stop = end if at_end else end + PAGE_SIZE
    cdef uint64_t at, here
    cdef const page_run* run
    cdef uint64_t* table
    cdef int64_t edges = 0
    while addr < stop:
        at = addr
        table = next_table_locked(mm, &at, stop)
        if table == NULL or at != addr:         # a gap: nothing is mapped there
            edges += pte_host(before) != HOST_NONE
            before = 0
            if table == NULL:
                break
        addr = at
        run = run_of(mm.mmu.m, table)
        while addr < stop:
            here = host_view(run, table + ((addr >> PAGE_SHIFT) & 511))
            edges += is_edge(mm.mmu, before, here)
            before = here
            addr += PAGE_SIZE
            if addr & ((1 << PMD_SHIFT) - 1) == 0:
                break
    if at_end and pte_host(before) != HOST_NONE:
        edges += 1
    return edges


cdef int64_t count_edges_locked(mm_struct* mm) noexcept nogil:
    return edges_in(mm, 0, <uint64_t>-1)


cdef int64_t edges_in_cleared(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    return (is_edge(mm.mmu, view_left_of(mm, start), 0)
            + is_edge(mm.mmu, 0, view_right_of(mm, end - PAGE_SIZE)))
