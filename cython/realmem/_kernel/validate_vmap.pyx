# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The areas one by one, then the page tables as a whole: what both count has to agree.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.edges cimport count_edges_locked
from realmem._kernel.mm_finding cimport (
    MM_ABOVE_ENTRY, MM_HOST_EDGES, MM_NR_PTES, MM_TABLE_USE, MM_VALID, MM_VMAP_FRAME,
    MM_VMAP_PAGES, MM_VMAP_RANGES, MM_VMAP_STRAY, mm_finding,
)
from realmem._kernel.mm_types cimport (
    HOST_READ, HOST_WRITE, MM_LIVE, PMD_SHIFT, PTE_PRESENT, PTE_RW, PTRS_PER_TABLE, VM_ALLOC,
    VM_UNINITIALIZED, VMALLOC_PGD, VMAP_RAM, mmu, pte_host, pte_pfn, vmap_area, vmap_space,
)
from realmem._kernel.page_free cimport FREE_ALREADY, FREE_BAD_PFN, free_check
from realmem._kernel.pgtable cimport next_table_locked
from realmem._kernel.vmap_area cimport next_vmap_area_locked, vmap_areas_valid_locked
from realmem.types cimport (
    PAGE_ALLOCATED, PAGE_SHIFT, PAGE_SIZE, PG_vmalloc, page, pfn_address, pfn_to_page,
)


cdef bint validate_vmap_locked(vmap_space* s, mm_finding* finding_ret, int64_t* tables_ret,
                               int64_t* frames_ret) noexcept nogil:
    cdef uint64_t where = 0
    cdef uint64_t mapped = 0
    cdef uint64_t entries = 0
    cdef vmap_area* area
    tables_ret[0] = frames_ret[0] = 0
    finding_ret.what = MM_VALID
    finding_ret.pid = 0
    if s.mm.id != s.mm_id or s.mm.state != MM_LIVE:
        return True
    if not vmap_areas_valid_locked(s, &where):
        return fail(finding_ret, MM_VMAP_RANGES, where, 0, 0)
    area = next_vmap_area_locked(s, s.mm.windows.user_start)
    while area != NULL:
        if not validate_area(s, area, finding_ret):
            return False
        mapped += area.nr_pages
        if area.flags & VM_ALLOC:
            frames_ret[0] += <int64_t>area.nr_pages
        area = next_vmap_area_locked(s, area.end)
    if frames_ret[0] != s.nr_pages:
        return fail(finding_ret, MM_VMAP_PAGES, s.mm.windows.user_start, frames_ret[0], s.nr_pages)
    if not validate_tables(s.mm.mmu, pte_pfn((<uint64_t*>pfn_address(
            s.mm.mmu.m, s.mm.core.pgd_pfn))[VMALLOC_PGD]), 2, tables_ret, &entries, finding_ret):
        return False
    if entries != mapped:
        return fail(finding_ret, MM_VMAP_STRAY, s.mm.windows.user_start, <int64_t>mapped,
                    <int64_t>entries)
    if tables_ret[0] != s.mm.core.nr_ptes:
        return fail(finding_ret, MM_NR_PTES, s.mm.windows.user_start, tables_ret[0],
                    s.mm.core.nr_ptes)
    if count_edges_locked(s.mm) != s.mm.host_edges:
        return fail(finding_ret, MM_HOST_EDGES, s.mm.windows.user_start, count_edges_locked(s.mm),
                    s.mm.host_edges)
    return True


# An area's pages are there from its first on, none behind them: the guard page.
cdef bint validate_area(vmap_space* s, const vmap_area* area,
                        mm_finding* ret) noexcept nogil:
    cdef uint64_t guard = 0 if area.flags & VMAP_RAM else PAGE_SIZE
    cdef uint64_t addr = area.start
    cdef uint64_t pages = 0
    cdef uint64_t* table
    cdef uint64_t entry
    while True:
        table = next_table_locked(s.mm, &addr, area.end)
        if table == NULL:
            break
        while addr < area.end:
            entry = table[(addr >> PAGE_SHIFT) & 511]
            if entry != 0:
                pages += 1
                if addr >= area.start + (area.nr_pages << PAGE_SHIFT):
                    return fail(ret, MM_VMAP_FRAME, addr, 0, <int64_t>entry)
                if not validate_entry(s.mm.mmu, area, addr, entry, ret):
                    return False
            addr += PAGE_SIZE
            if addr & ((1 << PMD_SHIFT) - 1) == 0:
                break
    if pages != area.nr_pages or not area.flags & VM_UNINITIALIZED and (
            (pages << PAGE_SHIFT) + guard != area.end - area.start):
        return fail(ret, MM_VMAP_PAGES, area.start, <int64_t>pages, <int64_t>area.nr_pages)
    return True


cdef bint validate_entry(mmu* u, const vmap_area* area, uint64_t addr, uint64_t entry,
                         mm_finding* ret) noexcept nogil:
    cdef page* p = pfn_to_page(u.m, pte_pfn(entry))
    cdef int why = free_check(u.m, pte_pfn(entry), 0)
    if pte_host(entry) == HOST_WRITE and not entry & PTE_RW or (
            pte_host(entry) >= HOST_READ and not entry & PTE_PRESENT):
        return fail(ret, MM_ABOVE_ENTRY, addr, 0, <int64_t>entry)
    if why == FREE_ALREADY or why == FREE_BAD_PFN or area.flags & VM_ALLOC and (
            p.kind.h.state != PAGE_ALLOCATED or not p.flags >> PG_vmalloc & 1):
        return fail(ret, MM_VMAP_FRAME, addr, 0, <int64_t>entry)
    return True


cdef bint validate_tables(mmu* u, uint64_t pfn, int level, int64_t* tables_ref,
                          uint64_t* entries_ref, mm_finding* ret) noexcept nogil:
    cdef const uint64_t* table = <uint64_t*>pfn_address(u.m, pfn)
    cdef int64_t used = 0
    cdef int i
    for i in range(PTRS_PER_TABLE):
        if table[i] == 0:
            continue
        used += 1
        if level == 0:
            entries_ref[0] += 1
            continue
        tables_ref[0] += 1
        if not validate_tables(u, pte_pfn(table[i]), level - 1, tables_ref, entries_ref, ret):
            return False
    if <int64_t>pfn_to_page(u.m, pfn).private != used:
        return fail(ret, MM_TABLE_USE, pfn, used, <int64_t>pfn_to_page(u.m, pfn).private)
    return True


cdef bint fail(mm_finding* ret, int what, uint64_t where, int64_t expected,
               int64_t found) noexcept nogil:
    ret.what = what
    ret.pid = 0
    ret.where = where
    ret.expected = expected
    ret.found = found
    return False
