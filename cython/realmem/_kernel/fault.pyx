# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The fault: VMA, page-table walk, frame, entry, host mapping, all under mm.lock.
#
#   store -> SIGSEGV -> sigsegv.pyx -> handle_mm_fault_locked()
#     no VMA, or not so           -> FAULT_MAPERR, FAULT_ACCERR
#     entry empty, read           -> the zero page, read-only
#     entry empty, write          -> a zeroed frame             do_anonymous_page
#     entry read-only, write      -> sole owner: opened as it is;
#                                    else: copied, replaced     do_wp_page
#     entry allows it             -> the host lost it: refilled
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from realmem._kernel.mm_types cimport (
    FAULT_ACCERR, FAULT_HOST, FAULT_MAPERR, FAULT_OK, FAULT_OOM, FAULT_WRITE, HOST_NONE,
    HOST_READ, HOST_WRITE, PTE_ACCESSED, PTE_DIRTY, PTE_NX, PTE_PRESENT, PTE_RW, PTE_SPECIAL,
    PTE_USER, TASK_SIZE, VM_ACCESS, VM_EXEC, VM_WRITE, is_kernel_mm, mm_struct, mmu, pte_host,
    pte_pfn, vma_slot,
)
from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport free_pages
from realmem._kernel.percpu cimport count_vm_event
from realmem._kernel.pgtable cimport pte_alloc_locked, pte_offset_locked
from realmem._kernel.tlb cimport tlb_fill_locked, tlb_install_locked
from realmem._kernel.vmaindex cimport vma_find
from realmem.compiler cimport SEQ_CST, VM_BUG_ON, atomic64_fetch_and, likely, load64, unlikely
from realmem.types cimport (
    GFP_HIGHUSER_MOVABLE, GFP_ZERO, HOST_SPURIOUS, PAGE_SHIFT, PAGE_SIZE, PGFAULT, PGREUSE,
    PG_anon, PG_anon_exclusive, PG_swapbacked, PG_uptodate, machine, page, page_address,
    page_counts, page_to_pfn, pfn_to_page,
)

cdef extern from *:
    uint64_t atomic64_add "__atomic_add_fetch"(uint64_t* p, uint64_t v, int order) noexcept nogil

cdef enum:
    ANON_FLAGS = 1 << PG_anon | 1 << PG_anon_exclusive | 1 << PG_swapbacked | 1 << PG_uptodate
cdef enum:
    # page.counts as one word: refcount below, mapcount (mappings - 1) above.
    ONE_REF = 1
    ONE_MAP = 0x100000000
    ONE_OWNER = 1               # refcount 1, mapcount 0


cdef int handle_mm_fault_locked(mm_struct* mm, uint64_t addr, int access,
                                bint hardware) noexcept nogil:
    cdef vma_slot* vma
    cdef uint64_t* pte
    cdef uint64_t entry
    cdef int rc
    if addr >= <uint64_t>TASK_SIZE:
        return vmalloc_fault(mm, addr, access) if is_kernel_mm(mm) else FAULT_MAPERR
    vma = vma_find(&mm.vmas, addr)
    if vma == NULL or addr < vma.start:
        return FAULT_MAPERR
    if not access_ok(vma, access):
        return FAULT_ACCERR
    pte = pte_alloc_locked(mm, addr)
    if unlikely(pte == NULL):
        return FAULT_OOM
    entry = pte[0]
    if entry == 0:
        rc = do_anonymous_page(mm, vma, addr, pte, access, hardware)
    elif access == FAULT_WRITE and not entry & PTE_RW:
        rc = do_wp_page(mm, addr, pte, hardware)
    else:
        return refill(mm, addr, pte, access, hardware)
    if likely(rc == FAULT_OK or rc == FAULT_HOST):
        mm.core.owner.min_flt += 1
        count_vm_event(mm.mmu.m, PGFAULT, 1)
    return rc


# The vmalloc area's page tables are the truth for it, too; what the host lost comes back, the
# run of frames that the address lies in at a time.
# Compare arch/x86/mm/fault.c:vmalloc_fault() (until 5.7), which copied a PGD entry.
cdef int vmalloc_fault(mm_struct* mm, uint64_t addr, int access) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(mm, addr)
    cdef uint64_t first = addr & ~<uint64_t>(PAGE_SIZE - 1)
    cdef uint64_t last = first
    cdef uint64_t* at
    if pte == NULL or not pte[0] & PTE_PRESENT:
        return FAULT_MAPERR
    if access == FAULT_WRITE and not pte[0] & PTE_RW:
        return FAULT_ACCERR
    if pte_host(pte[0]) == HOST_NONE:
        at = pte
        while (first >> PAGE_SHIFT) & 511 and (at - 1)[0] + PAGE_SIZE == at[0]:
            first -= PAGE_SIZE
            at -= 1
        at = pte
        while ((last >> PAGE_SHIFT) + 1) & 511 and (at + 1)[0] == at[0] + PAGE_SIZE:
            last += PAGE_SIZE
            at += 1
        tlb_fill_locked(mm, first, last + PAGE_SIZE)
    return refill(mm, addr, pte, access, True)


# Mirrors: arch/x86/mm/fault.c:access_error(); PROT_WRITE or PROT_EXEC alone is readable.
cdef inline bint access_ok(const vma_slot* vma, int access) noexcept nogil:
    if access == FAULT_WRITE:
        return vma.vma.vm_flags & VM_WRITE != 0
    return vma.vma.vm_flags & VM_ACCESS != 0


# The entry allows the access already: another thread was faster, or it is a TLB miss.
cdef int refill(mm_struct* mm, uint64_t addr, uint64_t* pte, int access,
                bint hardware) noexcept nogil:
    cdef uint64_t entry = pte[0] | PTE_ACCESSED
    cdef unsigned int host = HOST_NONE
    if access == FAULT_WRITE:
        entry |= PTE_DIRTY
    if hardware:
        # An entry that was written before is opened for writing at once.
        host = HOST_WRITE if entry & PTE_RW and entry & PTE_DIRTY else HOST_READ
        count_vm_event(mm.mmu.m, HOST_SPURIOUS, 1)
        if pte_host(entry) >= host:
            pte[0] = entry
            return FAULT_OK
    return install(mm, addr, pte, entry, host)


cdef inline int install(mm_struct* mm, uint64_t addr, uint64_t* pte, uint64_t entry,
                        unsigned int host) noexcept nogil:
    return FAULT_OK if tlb_install_locked(mm, addr, pte, entry, host) == 0 else FAULT_HOST


cdef inline uint64_t make_entry(const vma_slot* vma, uint64_t pfn, bint write) noexcept nogil:
    cdef uint64_t entry = (pfn << PAGE_SHIFT) | PTE_PRESENT | PTE_USER | PTE_ACCESSED
    if write:
        entry |= PTE_RW | PTE_DIRTY
    if not vma.vma.vm_flags & VM_EXEC:
        entry |= <uint64_t>PTE_NX
    return entry


# Mirrors: mm/memory.c:do_anonymous_page().
cdef int do_anonymous_page(mm_struct* mm, const vma_slot* vma, uint64_t addr, uint64_t* pte,
                           int access, bint hardware) noexcept nogil:
    cdef page* p
    if access != FAULT_WRITE:
        return install(mm, addr, pte, make_entry(vma, mm.mmu.zero_pfn, False) | PTE_SPECIAL,
                       HOST_READ if hardware else HOST_NONE)
    p = anon_page(mm, addr, GFP_HIGHUSER_MOVABLE | GFP_ZERO, hardware)
    if p == NULL:
        return FAULT_OOM
    mm.core.anon_rss += 1
    return install(mm, addr, pte, make_entry(vma, page_to_pfn(mm.mmu.m, p), True),
                   HOST_WRITE if hardware else HOST_NONE)


# A frame for addr, mapped once, exclusive.  A raw fault takes it from the node of the CPU
# that it happens on, a software access from where the process is said to run.
cdef page* anon_page(mm_struct* mm, uint64_t addr, uint32_t gfp, bint hardware) noexcept nogil:
    cdef page* p = alloc_pages_node(mm.mmu.m, -1 if hardware else mm.core.owner.nid, gfp, 0)
    if likely(p != NULL):
        p.index = addr >> PAGE_SHIFT
        p.flags |= ANON_FLAGS
        atomic64_add(&p.counts.word, ONE_MAP, SEQ_CST)
    return p


# A store to a present, read-only entry of a writable VMA.  Every host mapping of the frame
# is read-only (fork saw to that before it shared it), so that the copy cannot miss a store.
# Mirrors: mm/memory.c:do_wp_page() => wp_page_reuse(), wp_page_copy().
cdef int do_wp_page(mm_struct* mm, uint64_t addr, uint64_t* pte, bint hardware) noexcept nogil:
    cdef machine* m = mm.mmu.m
    cdef uint64_t entry = pte[0]
    cdef bint zero = entry & PTE_SPECIAL != 0
    cdef page* old = pfn_to_page(m, pte_pfn(entry))
    cdef page* new
    cdef unsigned int host = HOST_WRITE if hardware else HOST_NONE
    cdef int rc
    if not zero and load64(&old.counts.word) == ONE_OWNER:
        # The others dropped their references after their flushes, and nobody can take a new
        # one: sharing needs an entry that maps it, and the only one is under our lock.
        old.flags |= 1 << PG_anon_exclusive
        count_vm_event(m, PGREUSE, 1)
        return install(mm, addr, pte, entry | PTE_RW | PTE_DIRTY | PTE_ACCESSED, host)
    new = anon_page(mm, addr, GFP_HIGHUSER_MOVABLE | (GFP_ZERO if zero else 0), hardware)
    if new == NULL:
        return FAULT_OOM
    if not zero:
        memcpy(<void*>page_address(m, new), <void*>page_address(m, old), PAGE_SIZE)
    entry = (page_to_pfn(m, new) << PAGE_SHIFT) | PTE_PRESENT | PTE_RW | PTE_USER | (
        PTE_ACCESSED | PTE_DIRTY) | (entry & <uint64_t>PTE_NX)
    rc = install(mm, addr, pte, entry, host)
    if zero:
        mm.core.anon_rss += 1
    else:
        page_remove_rmap(mm.mmu, old)
    return rc


# ---- counting mappings ------------------------------------------------------

cdef void page_dup_rmap(page* p) noexcept nogil:
    atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_anon_exclusive), SEQ_CST)
    atomic64_add(&p.counts.word, ONE_MAP + ONE_REF, SEQ_CST)


cdef void page_remove_rmap(mmu* u, page* p) noexcept nogil:
    cdef page_counts now
    now.word = atomic64_add(&p.counts.word, -<uint64_t>ONE_MAP, SEQ_CST)
    VM_BUG_ON(now.c.mapcount < -1, "a frame lost a mapping that it did not have")
    if now.c.mapcount == -1:
        atomic64_fetch_and(&p.flags, ~<uint64_t>ANON_FLAGS, SEQ_CST)
    free_pages(u.m, p, 0)


cdef int64_t page_mapcount(const page* p) noexcept nogil:
    cdef page_counts now
    now.word = load64(<uint64_t*>&p.counts.word)
    return <int64_t>now.c.mapcount + 1
