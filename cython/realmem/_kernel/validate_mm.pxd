# Recounts of address spaces, for machine.check().  They assume nothing and change nothing.
from libc.stdint cimport int64_t, uint32_t

from realmem._kernel.mm_finding cimport mm_finding
from realmem._kernel.mm_types cimport mm_struct, mmu

# Recount every address space of u, and its vmalloc area: `counts` has one zeroed word for
# each frame.
# Preconditions: mms are u's, in ascending order of id; none is locked by the caller.
# Returns: whether all is well; else finding_ret says what is wrong first.
cdef bint validate_mms(mmu* u, mm_struct** mms, int64_t n, uint32_t* counts,
                       mm_finding* finding_ret) noexcept nogil
