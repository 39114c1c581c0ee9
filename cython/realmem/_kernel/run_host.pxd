# What the host has mapped of runs (run.pxd): below the TLB, which decides when.  Signal-safe;
# guarded by mm.lock.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport HOST_NONE, mm_struct, mmu, pte_host, pte_pfn
from realmem._kernel.run cimport run_bit, run_of
from realmem.types cimport machine, page_run

cdef enum:
    CHUNK_PAGES = 64            # of a run that are mapped at a time
    CHUNK_SIZE = 262144
    CHUNK_FEW = 4               # pages of a chunk in use that make it worth it
    CHUNK_MOST = 48             # ... of a neighbour, which is being filled in order

cdef inline uint64_t chunk_start(uint64_t addr) noexcept nogil:
    return addr & ~<uint64_t>(CHUNK_SIZE - 1)

# Whether `value` maps the frame that the run keeps for the page of an entry.
cdef inline bint is_run_page(const page_run* run, const uint64_t* pte,
                             uint64_t value) noexcept nogil:
    cdef unsigned int i = <unsigned int>(<uint64_t>pte >> 3) & 511
    return pte_pfn(value) == run.pfn + i and run_bit(run.mapped, i)

# Whether to map the chunk of an entry that is to become `value`: the host has nothing of it, and
# so many of its pages are in use that the others are likely to be.
cdef bint chunk_is_due(const mmu* u, const page_run* run, const uint64_t* pte,
                       uint64_t value) noexcept nogil

# Map the run's frames over a chunk without access, and open what was mapped of them before; with
# userfaultfd, over all that the run has (run_uffd.pxd).
# What the host refuses, or pins and other frames forbid, is left as it is.
# Preconditions: the address space has no scratch page; the run's table covers it.
cdef void map_chunk_locked(mm_struct* mm, uint64_t addr, page_run* run) noexcept nogil

# The host has something else, or nothing, where n entries from pte on stand.
cdef void forget_mapped(const machine* m, const uint64_t* pte, uint64_t n) noexcept nogil
# Whether it has a run's frames at any of them.
cdef bint maps_any(const machine* m, const uint64_t* pte, uint64_t n) noexcept nogil

cdef inline void forget_page(const machine* m, const uint64_t* pte) noexcept nogil:
    if run_of(m, pte) != NULL:
        forget_mapped(m, pte, 1)

# Around os.fork(): no mapping is on its way to a window, where the child's hook finds it.
cdef void run_host_fork_begins() noexcept nogil
cdef void run_host_fork_ends() noexcept nogil
