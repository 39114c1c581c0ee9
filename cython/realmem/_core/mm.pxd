# A machine's part in paging, for faces that map something.
from libc.stdint cimport uint64_t

from realmem._core.machine cimport MachineCore
from realmem._kernel.mm_types cimport mmu as mmu_struct

cdef class Mmu:
    cdef mmu_struct u
    cdef readonly MachineCore core
    cdef dict shmems            # Shmem that no VMA maps yet, weakly, by inode
    cdef bint verify            # compare what changes come to with what was planned
    cdef readonly double clock_s    # monotonic seconds, when it was
    cdef uint64_t clock_cycles      # ... so many cycles

    cdef bint is_ours(self)
