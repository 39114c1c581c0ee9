# A machine's part in paging, for faces that map something.
from libc.stdint cimport uint64_t

from realmem._core.machine cimport MachineCore
from realmem._kernel.mm_types cimport address_space, mmu as mmu_struct

cdef class Mmu:
    cdef mmu_struct u
    cdef readonly MachineCore core
    cdef dict shmems            # Shmem that no VMA maps yet, weakly, by inode
    cdef readonly dict inodes   # files that have frames, by (device, inode)
    cdef readonly list areas    # SwapArea, in the order of swapon
    cdef int pid                # of the host process that made it
    cdef bint reclaiming
    cdef bint verify            # compare what changes come to with what was planned
    cdef readonly double clock_s    # monotonic seconds, when it was
    cdef uint64_t clock_cycles      # ... so many cycles

    cdef bint is_ours(self)
    cdef bint make_room(self, int turn) noexcept    # who found no memory: whether to try again
    cdef void stop_reclaim(self) noexcept
    cdef int look_at_files(self) except -1


cdef class Shmem:
    cdef address_space* object
    cdef bint owned                 # until VMAs map it
    cdef readonly Mmu mmu
    cdef readonly uint64_t size     # pages
    cdef readonly uint64_t inode
    cdef object __weakref__

    cdef void drop(self) noexcept   # VMAs keep it from now on, or nothing does
