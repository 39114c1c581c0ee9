# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# What a fault costs here is its signal and its host call, so that sixteen pages at once cost
# little more than one.  Linux copies one page whatever the settings; so who did not ask for
# folios of 64 KiB gets that, and its count of faults.
#
# All of them are to look as if they had been broken one by one: hence only pages that were stored
# to before, which the copies say of themselves, too.
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport PROT_READ, PROT_WRITE

from realmem._kernel.donate cimport donate_copy_locked
from realmem._kernel.edges cimport add_edges, edges_in
from realmem._kernel.folio cimport FOLIO_GFP, folios_wanted
from realmem._kernel.host_calls cimport host_map, host_protect
from realmem._kernel.mempolicy cimport vma_alloc_pages
from realmem._kernel.mm_types cimport (
    HOST_NONE, HOST_WRITE, PTE_ACCESSED, PTE_DIRTY, PTE_PFN_MASK, PTE_PRESENT, PTE_RW,
    PTE_SOFT_DIRTY, PTE_SPECIAL, VM_LOCKED, host_address, is_pinned, mm_struct, mmu, pte_host,
    pte_pfn, pte_with_host, vm_area_struct,
)
from realmem._kernel.page_alloc cimport split_page
from realmem._kernel.percpu cimport count_vm_event
from realmem._kernel.run_host cimport forget_mapped
from realmem._kernel.run_uffd cimport is_registered, open_registered
from realmem._kernel.tlb cimport scratch_in, tlb_flush_locked, tlb_install_locked
from realmem._kernel.vm_fault cimport (
    KIND_COW, PART_ALLOC, PART_HOST_MAP, PART_ZERO_OR_COPY, kind_known, part_done, vm_fault,
)
from realmem._kernel.window cimport windows
from realmem._kernel.zap cimport munlock_page, page_add_new_anon_rmap, page_remove_rmap
from realmem.compiler cimport load64, peek64
from realmem.types cimport (
    HOST_MAP_FILL, HOST_MPROTECT, PAGE_SHIFT, PAGE_SIZE, PG_anon, PG_anon_exclusive, machine,
    page, page_address, page_to_pfn, page_zone, pfn_to_page,
)

cdef enum:
    BLOCK_ORDER = 4
    BLOCK_PAGES = 16
    BLOCK_SIZE = 65536
    ONE_OWNER = 1               # page.counts: refcount 1, mapcount 0
    STORED_TO = PTE_PRESENT | PTE_DIRTY | PTE_SOFT_DIRTY
    OPENED = PTE_RW | PTE_ACCESSED


cdef int cow_block_fault(vm_fault* f) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef vm_area_struct* vma = f.vma
    cdef machine* m = mm.mmu.m
    cdef uint64_t start = f.address & ~<uint64_t>(BLOCK_SIZE - 1)
    cdef uint64_t end = start + BLOCK_SIZE
    cdef uint64_t* pte = f.pte - ((f.address - start) >> PAGE_SHIFT)
    cdef page* block
    cdef int i
    if (not folios_wanted(mm, vma) & (1 << BLOCK_ORDER) or start < vma.vm_start
            or end > vma.vm_end or not all_to_copy(m, pte) or is_pinned(mm, start, end)
            or scratch_in(mm, start, end) or peek64(&windows.host_vmas) >= mm.mmu.vma_budget):
        return -1
    block = vma_alloc_pages(mm, vma, f.address, FOLIO_GFP, BLOCK_ORDER,
                            pfn_to_page(m, pte_pfn(f.pte[0])))
    if block == NULL:
        return -1
    kind_known(f, KIND_COW)
    part_done(f, PART_ALLOC)
    for i in range(BLOCK_PAGES):
        memcpy(<void*>page_address(m, block + i),
               <void*>page_address(m, pfn_to_page(m, pte_pfn(pte[i]))), PAGE_SIZE)
    part_done(f, PART_ZERO_OR_COPY)
    split_page(m, block, BLOCK_ORDER)
    block.private = 0           # counts huge entries
    use_copies(f, start, pte, block)
    part_done(f, PART_HOST_MAP)
    f.order = BLOCK_ORDER
    return 0


# Whether a store to any of them would be copied: shared, and stored to before.
cdef bint all_to_copy(machine* m, const uint64_t* pte) noexcept nogil:
    cdef const page* p
    cdef int i
    for i in range(BLOCK_PAGES):
        if pte[i] & (STORED_TO | PTE_RW | PTE_SPECIAL) != STORED_TO:
            return False
        p = pfn_to_page(m, pte_pfn(pte[i]))
        if not p.flags & (1 << PG_anon) or p.flags & (1 << PG_anon_exclusive) or (
                load64(&p.counts.word) == ONE_OWNER):
            return False
    return True


# No store can reach the old frames, which are read-only wherever they are mapped.  Those that are
# given up are so once the host has the new ones in their place.
cdef void use_copies(vm_fault* f, uint64_t start, uint64_t* pte, page* block) noexcept nogil:
    cdef mmu* u = f.mm.mmu
    cdef page* old[16]
    cdef int given = 0
    cdef int i
    for i in range(BLOCK_PAGES):
        old[i] = pfn_to_page(u.m, pte_pfn(pte[i]))
        page_add_new_anon_rmap(f.mm, f.vma, start + (<uint64_t>i << PAGE_SHIFT), block + i)
    while given < BLOCK_PAGES and donate_copy_locked(f.mm, f.vma, pte + given, old[given],
                                                     block + given):
        given += 1
    if given > 0:
        open_pages(f, start, pte, given)
    if given < BLOCK_PAGES:
        replace_pages(f, start + (<uint64_t>given << PAGE_SHIFT), pte + given, block + given,
                      BLOCK_PAGES - given)
    for i in range(given, BLOCK_PAGES):
        if f.vma.vm_flags & VM_LOCKED:
            munlock_page(u, old[i])
        page_remove_rmap(f.mm, old[i])


# Entries whose frames the host has where they stand: stores may go there.
cdef void open_pages(vm_fault* f, uint64_t addr, uint64_t* pte, uint64_t n) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef uint64_t length = n << PAGE_SHIFT
    cdef int64_t before
    cdef uint64_t i
    cdef uint64_t registered = 0
    cdef bint alike = True
    for i in range(n):
        pte[i] |= OPENED
        registered += is_registered(mm.mmu.m, pte + i)
        alike = alike and pte_host(pte[i]) == pte_host(pte[0])
    if not f.hardware:
        return
    if registered != 0 and (registered != n or not alike):
        for i in range(n):
            tlb_install_locked(mm, addr + (i << PAGE_SHIFT), pte + i, pte[i], HOST_WRITE)
        return
    if open_host(mm, host_address(mm, addr), length, pte_host(pte[0]), registered != 0) != 0:
        tlb_flush_locked(mm, addr, addr + length)       # some may have been opened
        return
    before = edges_in(mm, addr, addr + length)
    for i in range(n):
        pte[i] = pte_with_host(pte[i], HOST_WRITE)
    add_edges(mm, edges_in(mm, addr, addr + length) - before)


cdef inline int open_host(mm_struct* mm, uint64_t at, uint64_t length, unsigned int now,
                          bint registered) noexcept nogil:
    if registered:
        return open_registered(mm.mmu, at, length, now, HOST_WRITE)
    count_vm_event(mm.mmu.m, HOST_MPROTECT, 1)
    return host_protect(at, length, PROT_READ | PROT_WRITE)


# Entries that are to map the frames from `block` on instead, and the host, too.
cdef void replace_pages(vm_fault* f, uint64_t addr, uint64_t* pte, page* block,
                        uint64_t n) noexcept nogil:
    cdef mmu* u = f.mm.mmu
    cdef uint64_t length = n << PAGE_SHIFT
    cdef uint64_t pfn = page_to_pfn(u.m, block)
    cdef int nid = page_zone(u.m, block).nid
    cdef bint filled = False
    cdef int64_t before
    cdef uint64_t i
    if f.hardware:
        count_vm_event(u.m, HOST_MAP_FILL, 1)
        filled = host_map(host_address(f.mm, addr), length, PROT_READ | PROT_WRITE, u.fds[nid],
                          (pfn << PAGE_SHIFT) - u.fd_phys[nid]) == 0
    if not filled:
        tlb_flush_locked(f.mm, addr, addr + length)
    before = edges_in(f.mm, addr, addr + length)
    for i in range(n):
        pte[i] = pte_with_host((pte[i] & ~<uint64_t>PTE_PFN_MASK) | ((pfn + i) << PAGE_SHIFT)
                               | OPENED, HOST_WRITE if filled else HOST_NONE)
    if filled:
        forget_mapped(u.m, pte, n)
    add_edges(f.mm, edges_in(f.mm, addr, addr + length) - before)
