# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport uint64_t

from realmem._kernel.mempolicy cimport policy_node
from realmem._kernel.mm_types cimport PMD_SHIFT, PTRS_PER_TABLE
from realmem._kernel.percpu cimport this_node
from realmem._kernel.pgtable cimport free_pgtables_locked, next_table_locked, table_of
from realmem._kernel.run cimport run_end, run_of, run_reserve, set_run_of
from realmem._kernel.run_host cimport maps_any
from realmem._kernel.tlb cimport tlb_flush_locked

cdef enum: PMD_SIZE = 1 << PMD_SHIFT


cdef page_run* mm_run_locked(mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                             uint64_t* pte) noexcept nogil:
    cdef page_run* run = run_of(mm.mmu.m, pte)
    cdef uint64_t base = addr & ~<uint64_t>(PMD_SIZE - 1)
    cdef int nid
    if run != NULL or not mm.mmu.runs or base < vma.vm_start or base + PMD_SIZE > vma.vm_end:
        return run
    nid = policy_node(mm, vma, addr, NULL)
    run = run_reserve(mm.mmu.m, this_node(mm.mmu.m) if nid < 0 else nid)
    if run != NULL:
        set_run_of(mm.mmu.m, pte, run)
        mm.nr_runs += 1
    return run


cdef void free_tables_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t addr = start
    cdef uint64_t* table
    cdef page_run* run
    while mm.nr_runs > 0:
        table = next_table_locked(mm, &addr, end)
        if table == NULL:
            break
        addr &= ~<uint64_t>(PMD_SIZE - 1)
        run = run_of(mm.mmu.m, table)
        if run != NULL and table_of(mm.mmu, table).private == 0:
            # Parts of it may lie outside of [start, end), where nothing was flushed.
            if maps_any(mm.mmu.m, table, PTRS_PER_TABLE):
                tlb_flush_locked(mm, addr, addr + PMD_SIZE)
            set_run_of(mm.mmu.m, table, NULL)
            run_end(run)
            mm.nr_runs -= 1
        addr += PMD_SIZE
    free_pgtables_locked(mm, start, end)
