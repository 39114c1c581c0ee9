# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The host's VMA allows everything, and has nothing: each page's first access is a minor fault,
# told by SIGBUS, and served by UFFDIO_CONTINUE.  So no host VMA is split by fills, or by
# protection, which is write protection of single pages; to take a page away is to drop it from the
# host's tables.
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.mman cimport PROT_READ, PROT_WRITE

from realmem._kernel.edges cimport add_edges, edges_in
from realmem._kernel.host_calls cimport host_discard, host_map_empty, host_protect
from realmem._kernel.mm_types cimport (
    HOST_NOACC, HOST_NONE, HOST_READ, HOST_WRITE, PMD_SHIFT, PTRS_PER_TABLE, host_address,
    is_pinned, pte_host, pte_pfn, pte_with_host,
)
from realmem._kernel.percpu cimport count_vm_event
from realmem._kernel.pgtable cimport pte_offset_locked
from realmem._kernel.uffd cimport uffd_continue, uffd_protect, uffd_register
from realmem.types cimport HOST_CONTINUE, HOST_MAP_FILL, HOST_MPROTECT, PAGE_SHIFT, PAGE_SIZE

cdef enum: PMD_SIZE = 1 << PMD_SHIFT


cdef void map_registered_locked(mm_struct* mm, uint64_t start, page_run* run) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(mm, start)
    cdef uint64_t at = host_address(mm, start)
    cdef mmu* u = mm.mmu
    cdef int64_t before
    if is_pinned(mm, start, start + PMD_SIZE):
        return
    before = edges_in(mm, start, start + PMD_SIZE)
    # Without access until it is registered: from then on nothing is there before it is asked for.
    if host_map_empty(at, PMD_SIZE, u.fds[run.z.nid],
                      (run.pfn << PAGE_SHIFT) - u.fd_phys[run.z.nid]) != 0:
        return
    count_vm_event(u.m, HOST_MAP_FILL, 1)
    memset(run.mapped, 0xFF, sizeof(run.mapped))
    if uffd_register(u.uffd, at, PMD_SIZE) == 0:
        run.registered = 1
        if host_protect(at, PMD_SIZE, PROT_READ | PROT_WRITE) != 0:
            run.registered = 0
    else:
        run.registered = 0
    reopen(u, at, pte, run)
    add_edges(mm, edges_in(mm, start, start + PMD_SIZE) - before)


# What was open before is opened again, in one call where pages follow each other; what is not
# the run's waits for a fault.
cdef void reopen(mmu* u, uint64_t at, uint64_t* pte, const page_run* run) noexcept nogil:
    cdef int i = 0
    cdef int n, j
    cdef unsigned int host
    while i < PTRS_PER_TABLE:
        host = open_as(run, pte, i)
        n = 1
        while i + n < PTRS_PER_TABLE and open_as(run, pte, i + n) == host:
            n += 1
        if host == HOST_NONE or open_registered(u, at + (<uint64_t>i << PAGE_SHIFT),
                                                <uint64_t>n << PAGE_SHIFT, HOST_NONE, host) != 0:
            for j in range(i, i + n):
                pte[j] = pte_with_host(pte[j], HOST_NONE)
        i += n


cdef inline unsigned int open_as(const page_run* run, const uint64_t* pte, int i) noexcept nogil:
    cdef unsigned int host = pte_host(pte[i])
    if not run.registered or pte_pfn(pte[i]) != run.pfn + i or host == HOST_NOACC:
        return HOST_NONE
    return host


cdef int open_registered(mmu* u, uint64_t at, uint64_t length, unsigned int now,
                         unsigned int host) noexcept nogil:
    if now == HOST_READ and host == HOST_WRITE:
        count_vm_event(u.m, HOST_MPROTECT, 1)
        return uffd_protect(u.uffd, at, length, False)
    count_vm_event(u.m, HOST_CONTINUE, 1)
    return uffd_continue(u.uffd, at, length, host == HOST_READ)


cdef int refresh_registered(mmu* u, uint64_t at, unsigned int host) noexcept nogil:
    cdef int rc = open_registered(u, at, PAGE_SIZE, HOST_NONE, host)
    if rc == 0 and host == HOST_WRITE:
        rc = open_registered(u, at, PAGE_SIZE, HOST_READ, host)
    return rc


cdef int protect_registered(mmu* u, uint64_t at, uint64_t length,
                            unsigned int most) noexcept nogil:
    count_vm_event(u.m, HOST_MPROTECT, 1)
    if most == HOST_READ:
        return uffd_protect(u.uffd, at, length, True)
    return host_discard(at, length)


cdef bint discard_registered(mm_struct* mm, uint64_t start, const uint64_t* pte,
                             uint64_t n) noexcept nogil:
    cdef const page_run* run = run_of(mm.mmu.m, pte)
    cdef unsigned int first = <unsigned int>(<uint64_t>pte >> 3) & 511
    cdef uint64_t i
    if run == NULL or not run.registered:
        return False
    for i in range(n):
        if not run_bit(run.mapped, first + i) and pte_host(pte[i]) != HOST_NONE:
            return False
    # It is refused where the host's user has locked all memory.
    return host_discard(host_address(mm, start), n << PAGE_SHIFT) == 0
