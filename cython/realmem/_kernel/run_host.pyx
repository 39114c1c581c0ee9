# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# A run is mapped in chunks, present in the host's page tables but without access; then a fault
# costs one mprotect that moves the edge of what is open.  By one mmap a page it costs 2.5 times as
# much, by mprotect in a chunk that the host had not filled 1.5 times: its own fault follows ours.
# To fill a chunk costs what some 14 such faults do, so that a few must have come.
#
# A mapping cannot be filled without access, and with access other threads would reach frames that
# are nobody's yet.  So it is made elsewhere, and moved to the window once it is closed.
from libc.stdint cimport int64_t, uint64_t
from posix.mman cimport PROT_READ, PROT_WRITE

from realmem._kernel.edges cimport add_edges, edges_in
from realmem._kernel.host_calls cimport (
    host_map_closed, host_protect, mutex, mutex_lock, mutex_trylock, mutex_unlock,
)
from realmem._kernel.mm_types cimport (
    HOST_READ, HOST_WRITE, PMD_SHIFT, host_address, is_pinned, mmu, pte_with_host,
)
from realmem._kernel.run_uffd cimport map_registered_locked
from realmem._kernel.percpu cimport count_vm_event
from realmem._kernel.pgtable cimport pte_offset_locked
from realmem._kernel.run cimport RUN_PAGES
from realmem.types cimport HOST_MAP_FILL, HOST_MPROTECT, PAGE_SHIFT

cdef extern from *:
    int popcount "__builtin_popcountll"(uint64_t x) noexcept nogil

cdef enum: HALF = 32            # pages in use that make it worth it if the run has no others left

cdef mutex fork_lock            # held while a mapping is made elsewhere; innermost, only tried


cdef bint chunk_is_due(const mmu* u, const page_run* run, const uint64_t* pte,
                       uint64_t value) noexcept nogil:
    cdef unsigned int i = <unsigned int>(<uint64_t>pte >> 3) & 511
    cdef unsigned int chunk = i >> 6
    cdef int used
    if (run.mapped[chunk] != 0 or pte_pfn(value) != run.pfn + i
            or pte_host(pte[0]) != HOST_NONE):
        return False
    if u.uffd >= 0:
        return run.unused <= RUN_PAGES - 2
    used = popcount(run.used[chunk])
    if run.unused == 0:
        return used >= HALF
    return (used >= CHUNK_FEW or (chunk > 0 and popcount(run.used[chunk - 1]) >= CHUNK_MOST)
            or (chunk < 7 and popcount(run.used[chunk + 1]) >= CHUNK_MOST))


cdef void map_chunk_locked(mm_struct* mm, uint64_t addr, page_run* run) noexcept nogil:
    cdef uint64_t start = chunk_start(addr)
    cdef uint64_t* pte = pte_offset_locked(mm, start)
    cdef uint64_t first = (<uint64_t>pte >> 3) & 511
    cdef uint64_t pfn = run.pfn + first
    cdef mmu* u = mm.mmu
    cdef int64_t before
    cdef uint64_t i
    cdef int rc
    if u.uffd >= 0:
        map_registered_locked(mm, addr & ~<uint64_t>((1 << PMD_SHIFT) - 1), run)
        return
    for i in range(CHUNK_PAGES):
        if pte_host(pte[i]) != HOST_NONE and pte_pfn(pte[i]) != pfn + i:
            return
    if is_pinned(mm, start, start + CHUNK_SIZE) or not mutex_trylock(&fork_lock):
        return
    before = edges_in(mm, start, start + CHUNK_SIZE)
    rc = host_map_closed(host_address(mm, start), CHUNK_SIZE, u.fds[run.z.nid],
                         (pfn << PAGE_SHIFT) - u.fd_phys[run.z.nid])
    mutex_unlock(&fork_lock)
    if rc < 0:
        return
    count_vm_event(u.m, HOST_MAP_FILL, 1)
    if rc == 0:
        run.mapped[first >> 6] = ~<uint64_t>0
        reopen(mm, start, pte)
    else:                       # the host failed half-way: nothing is there any more
        for i in range(CHUNK_PAGES):
            pte[i] = pte_with_host(pte[i], HOST_NONE)
    add_edges(mm, edges_in(mm, start, start + CHUNK_SIZE) - before)


# Pages that were mapped before one by one get back what they had; in one call where they follow
# each other.  What the host refuses is left to faults.
cdef void reopen(mm_struct* mm, uint64_t start, uint64_t* pte) noexcept nogil:
    cdef uint64_t i = 0
    cdef uint64_t n, j
    cdef unsigned int host
    cdef int rc
    while i < CHUNK_PAGES:
        host = pte_host(pte[i])
        n = 1
        while i + n < CHUNK_PAGES and pte_host(pte[i + n]) == host:
            n += 1
        if host >= HOST_READ:
            rc = host_protect(host_address(mm, start + (i << PAGE_SHIFT)), n << PAGE_SHIFT,
                              PROT_READ | PROT_WRITE if host == HOST_WRITE else PROT_READ)
            count_vm_event(mm.mmu.m, HOST_MPROTECT, 1)
            if rc != 0:
                for j in range(i, i + n):
                    pte[j] = pte_with_host(pte[j], HOST_NONE)
        i += n


cdef void forget_mapped(const machine* m, const uint64_t* pte, uint64_t n) noexcept nogil:
    cdef page_run* run = run_of(m, pte)
    cdef uint64_t i = (<uint64_t>pte >> 3) & 511
    cdef uint64_t end = i + n
    if run == NULL:
        return
    while i < end:
        if i & 63 == 0 and end - i >= 64:
            run.mapped[i >> 6] = 0
            i += 64
        else:
            run.mapped[i >> 6] &= ~(<uint64_t>1 << (i & 63))
            i += 1


cdef bint maps_any(const machine* m, const uint64_t* pte, uint64_t n) noexcept nogil:
    cdef const page_run* run = run_of(m, pte)
    cdef uint64_t i = (<uint64_t>pte >> 3) & 511
    cdef uint64_t end = i + n
    while run != NULL and i < end:
        if run.mapped[i >> 6] == 0:
            i = (i | 63) + 1
        elif run_bit(run.mapped, i):
            return True
        else:
            i += 1
    return False


cdef void run_host_fork_begins() noexcept nogil:
    mutex_lock(&fork_lock)


cdef void run_host_fork_ends() noexcept nogil:
    mutex_unlock(&fork_lock)
