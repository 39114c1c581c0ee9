# Recounts of address spaces, for machine.check().  They assume nothing and change nothing.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct, mmu

# What is wrong; _core/mm.pyx has the words.
cdef enum:
    MM_VALID = 0
    MM_OUTSIDE_VMA = 1          # an entry in no VMA
    MM_ABOVE_VMA = 2            # an entry allows more than its VMA
    MM_ABOVE_ENTRY = 3          # a host mapping allows more than its entry
    MM_NOT_ANON = 4             # an entry's frame is no anonymous page
    MM_SHARED_WRITABLE = 5      # a writable entry to a frame that is mapped elsewhere too
    MM_RSS = 6
    MM_TABLE_USE = 7            # a table's count of used entries
    MM_NR_PTES = 8
    MM_HOST_EDGES = 9
    MM_MAPCOUNT = 10
    MM_REFCOUNT = 11
    MM_LOST_TABLE = 12          # page-table frames in no address space
    MM_VMA_ORDER = 13

cdef struct mm_finding:
    int what
    int pid
    uint64_t where              # address or pfn
    int64_t expected
    int64_t found

# Recount every address space of u: `counts` has one zeroed word for each frame.
# Preconditions: mms are u's, in ascending order of id; none is locked by the caller.
# Returns: whether all is well; else finding_ret says what is wrong first.
cdef bint validate_mms(mmu* u, mm_struct** mms, int64_t n, uint32_t* counts,
                       mm_finding* finding_ret) noexcept nogil
