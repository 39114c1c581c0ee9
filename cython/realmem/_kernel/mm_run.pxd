# Runs of an address space: begun by a fault, ended with their page table.  Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct, vm_area_struct
from realmem.types cimport page_run

# The run for an empty entry that a raw store is to fill: the table's, or a new one where all that
# the table covers is one VMA's; NULL: none.
# Preconditions: mm.lock held; it is private memory, and no folio of 2 MiB is wanted.
cdef page_run* mm_run_locked(mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                             uint64_t* pte) noexcept nogil

# Free the page tables of [start, end) that hold nothing (free_pgtables_locked), their runs too.
# Preconditions: mm.lock held; what was mapped in [start, end) was flushed.
cdef void free_tables_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil
