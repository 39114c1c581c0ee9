# The second backend: runs that the host fills page by page through userfaultfd.  Signal-safe;
# under mm.lock.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct, mmu, pte_pfn
from realmem._kernel.run cimport run_bit, run_of
from realmem.types cimport machine, page_run

# Map all of a run, registered, and open what was mapped of it before; other frames wait for a
# fault.  What the host refuses, or pins forbid, is left as it is.
# Preconditions: no scratch page; the run's table covers [start, start + 2 MiB).
cdef void map_registered_locked(mm_struct* mm, uint64_t start, page_run* run) noexcept nogil

# Open pages of host address `at` that have the access `now`: 0 or -errno.
cdef int open_registered(mmu* u, uint64_t at, uint64_t length, unsigned int now,
                         unsigned int host) noexcept nogil

# Have the host map a page again that it says it has not, or has without the right to write: 0 or
# -errno.
cdef int refresh_registered(mmu* u, uint64_t at, unsigned int host) noexcept nogil

# Leave pages the access of `most` at most: 0 or -errno.
cdef int protect_registered(mmu* u, uint64_t at, uint64_t length, unsigned int most) noexcept nogil

# Take n pages' frames away where the host has nothing else there, and keep the host's VMA.
# Returns: whether that was possible.
cdef bint discard_registered(mm_struct* mm, uint64_t start, const uint64_t* pte,
                             uint64_t n) noexcept nogil

# Whether the page of an entry is opened and closed by the two above.
cdef inline bint is_registered(const machine* m, const uint64_t* pte) noexcept nogil:
    cdef const page_run* run = run_of(m, pte)
    cdef unsigned int i = <unsigned int>(<uint64_t>pte >> 3) & 511
    return (run != NULL and run.registered and run_bit(run.mapped, i)
            and pte_pfn(pte[0]) == run.pfn + i)
