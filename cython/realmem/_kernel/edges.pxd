# The host VMAs of a window, from the page tables.  Signal-safe; mm.lock held.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport (
    HOST_NOACC, HOST_NONE, HOST_WRITE, mm_struct, pte_host, pte_with_host,
)
from realmem._kernel.run cimport run_bit
from realmem._kernel.window cimport windows
from realmem.compiler cimport SEQ_CST, atomic64_add_return
from realmem.types cimport PAGE_SHIFT, page_run

# In views only: in a VMA that is registered.  No shift, which C would do in an int.
cdef enum: BY_UFFD = 0x0040000000000000

# The edges on both sides of one page.
cdef int edges_around(mm_struct* mm, uint64_t addr, uint64_t* pte) noexcept nogil

# The edges between pages (start - 1, start) ... (end - 1, end), window by window.
cdef int64_t edges_in(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil

# The edges around [start, end) once nothing is mapped inside.
cdef int64_t edges_in_cleared(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil

# Recount the host VMAs of the window from the PTEs' host bits, for validation.
cdef int64_t count_edges_locked(mm_struct* mm) noexcept nogil

# What the host has where an entry stands, as an entry: the run's frame where that one says
# nothing.
cdef inline uint64_t host_view(const page_run* run, const uint64_t* pte) noexcept nogil:
    cdef unsigned int i = <unsigned int>(<uint64_t>pte >> 3) & 511
    if run == NULL or not run_bit(run.mapped, i):
        return pte[0]
    if run.registered:              # one host VMA, whatever is open of it
        return pte_with_host((run.pfn + i) << PAGE_SHIFT, HOST_WRITE) | <uint64_t>BY_UFFD
    if pte_host(pte[0]) != HOST_NONE:
        return pte[0]
    return pte_with_host((run.pfn + i) << PAGE_SHIFT, HOST_NOACC)

cdef inline void add_edges(mm_struct* mm, int64_t delta) noexcept nogil:
    if delta != 0:
        mm.host_edges += delta
        atomic64_add_return(&windows.host_vmas, delta, SEQ_CST)
