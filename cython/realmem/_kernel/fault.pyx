# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The fault: VMA, page-table walk, frame, entry, host mapping, all under mm.lock.
#
#   store -> SIGSEGV -> sigsegv.pyx -> handle_mm_fault_locked()
#     no VMA                      -> a stack above may grow; else FAULT_MAPERR
#     not so                      -> FAULT_ACCERR
#     entry empty, of an object   -> its frame, found, made or read, or a copy   do_fault
#     entry empty, read           -> the zero page, read-only
#     entry empty, write          -> a zeroed frame             do_anonymous_page
#     entry read-only, write      -> sole owner: opened as it is;
#                                    else: copied, replaced     do_wp_page
#                                    or the copy given away     donate.pyx
#     entry of a swapped page     -> found in the swap cache, or read back    swap_in.pyx
#     entry a guard marker        -> FAULT_MAPERR
#     entry a NUMA hint           -> lifted, and on       do_numa_page
#     entry allows it             -> the host lost it: refilled
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from realmem._kernel.cow_block cimport cow_block_fault
from realmem._kernel.donate cimport donate_copy_locked
from realmem._kernel.expand cimport expand_stack_locked
from realmem._kernel.fault_cost cimport fault_account
from realmem._kernel.filemap cimport filemap_get_page, filemap_mkwrite
from realmem._kernel.mempolicy cimport policy_node, vma_alloc_pages
from realmem._kernel.mm_run cimport mm_run_locked
from realmem._kernel.mm_types cimport (
    FAULT_ACCERR, FAULT_HOST, FAULT_MAPERR, FAULT_OK, FAULT_OOM, FAULT_WRITE, HOST_NONE,
    HOST_READ, HOST_WRITE, PTE_ACCESSED, PTE_DIRTY, PTE_PFN_MASK, PTE_PRESENT, PTE_PROTNONE,
    PTE_RW, PTE_SOFT_DIRTY, PTE_SPECIAL, TASK_SIZE, VM_ACCESS, VM_LOCKED, VM_SHARED, VM_WRITE,
    address_space, is_kernel_mm, is_swap_pte, linear_page_index, mm_struct, mmu, pte_host, pte_pfn,
    pte_present, vm_area_struct, vma_slot,
)
from realmem._kernel.page_alloc cimport alloc_run_pages
from realmem._kernel.page_free cimport put_page
from realmem._kernel.percpu cimport count_vm_event, this_node
from realmem._kernel.folio cimport (
    anon_folio_fault, folios_wanted, huge_zero_fault, huge_zero_wp, make_entry,
)
from realmem._kernel.huge cimport fill_huge_locked, reuse_huge_locked
from realmem._kernel.pgtable cimport (
    is_huge_locked, pte_alloc_locked, pte_offset_locked, split_huge_locked,
)
from realmem._kernel.rmap cimport anon_vma_prepare
from realmem._kernel.run cimport run_of
from realmem._kernel.shmem cimport shmem_get_page
from realmem._kernel.swap_in cimport swap_in_locked
from realmem._kernel.tlb cimport tlb_fill_locked, tlb_install_locked, tlb_refresh_locked
from realmem._kernel.vm_fault cimport (
    KIND_ANON, KIND_COW, KIND_REFILL, KIND_REUSE, KIND_SHARED, KIND_SWAP, KIND_ZERO_PAGE,
    PART_ALLOC, PART_HOST_MAP, PART_VMA, PART_WALK, PART_ZERO_OR_COPY, fault_begins, kind_known,
    part_done, vm_fault,
)
from realmem._kernel.vmaindex cimport vma_find
from realmem._kernel.zap cimport (
    mlock_page, munlock_page, page_add_new_anon_rmap, page_remove_rmap, set_anon_exclusive,
)
from realmem.compiler cimport SEQ_CST, atomic64_add_return, likely, load64, unlikely
from realmem.types cimport (
    GFP_FAULT, HOST_SPURIOUS, HPAGE_PMD_ORDER, PAGE_SHIFT, PAGE_SIZE, PGFAULT,
    PGMAJFAULT, PGREUSE,
    PG_anon, PG_anon_exclusive, machine, page, page_address,
    page_counts, page_run, page_to_pfn, page_zone, pfn_to_page,
)

cdef extern from *:
    uint64_t atomic64_add "__atomic_add_fetch"(uint64_t* p, uint64_t v, int order) noexcept nogil

cdef enum:
    # page.counts as one word: refcount below, mapcount (mappings - 1) above.
    ONE_MAP = 0x100000000
    ONE_OWNER = 1               # refcount 1, mapcount 0
    WRITTEN = PTE_RW | PTE_DIRTY | PTE_SOFT_DIRTY


cdef int handle_mm_fault_locked(mm_struct* mm, uint64_t addr, int access, bint hardware,
                                uint64_t entered) noexcept nogil:
    cdef vm_fault f
    cdef vma_slot* slot
    cdef int rc
    memset(&f, 0, sizeof(vm_fault))
    f.mm = mm
    f.address = addr
    f.access = access
    f.hardware = hardware
    fault_begins(&f, entered)
    if addr >= <uint64_t>TASK_SIZE:
        return vmalloc_fault(&f) if is_kernel_mm(mm) else FAULT_MAPERR
    slot = vma_find(&mm.vmas, addr)
    if slot == NULL or (addr < slot.start and expand_stack_locked(mm, slot, addr) != 0):
        return FAULT_MAPERR
    f.vma = slot.vma
    if not access_ok(f.vma, access):
        return FAULT_ACCERR
    part_done(&f, PART_VMA)
    f.pte = pte_alloc_locked(mm, addr)
    if unlikely(f.pte == NULL):
        return FAULT_OOM
    part_done(&f, PART_WALK)
    rc = handle_pte_fault(&f)
    if likely(rc == FAULT_OK):
        fault_account(&f)
    return rc


# Mirrors: mm/memory.c:handle_pte_fault().
cdef inline int handle_pte_fault(vm_fault* f) noexcept nogil:
    cdef uint64_t entry = f.pte[0]
    cdef int rc
    if unlikely(entry & (PTE_PRESENT | PTE_PROTNONE) == PTE_PROTNONE):
        entry = do_numa_page(f)
    if entry == 0:
        if f.vma.vm_object != NULL:
            rc = do_fault(f)
        else:
            rc = do_anonymous_page(f)
    elif unlikely(not pte_present(entry)):
        rc = do_swap_page(f) if is_swap_pte(entry) else FAULT_MAPERR    # a guard region
    elif f.access == FAULT_WRITE and not entry & PTE_RW:
        if f.vma.vm_flags & VM_SHARED:
            rc = wp_page_shared(f)
        else:
            rc = do_wp_page(f)
    else:
        return refill(f)
    # mm/memory.c:mm_account_fault(): what failed is no fault of the task's.
    count_vm_event(f.mm.mmu.m, PGFAULT, rc != FAULT_OOM)
    if likely(rc == FAULT_OK or rc == FAULT_HOST):
        if unlikely(f.major):
            count_vm_event(f.mm.mmu.m, PGMAJFAULT, 1)
            f.mm.core.owner.maj_flt += 1
        else:
            f.mm.core.owner.min_flt += 1
    return rc


# A hint: the VMA allows what the entry does not.  It is lifted; what else the access needs comes
# next, where Linux waits for the next fault.  Who would have the page moved asks here.
# Mirrors: mm/memory.c:do_numa_page(), without migration.
cdef uint64_t do_numa_page(vm_fault* f) noexcept nogil:
    cdef mmu* u = f.mm.mmu
    cdef page* p = pfn_to_page(u.m, pte_pfn(f.pte[0]))
    f.pte[0] = (f.pte[0] & ~<uint64_t>PTE_PROTNONE) | PTE_PRESENT
    atomic64_add_return(&u.numa_hint_faults, 1, SEQ_CST)
    if page_zone(u.m, p).nid == this_node(u.m):
        atomic64_add_return(&u.numa_hint_faults_local, 1, SEQ_CST)
    count_vm_event(u.m, PGFAULT, 1)
    f.mm.core.owner.min_flt += 1
    return f.pte[0]


# The vmalloc area's page tables are the truth for it, too; what the host lost comes back, the
# run of frames that the address lies in at a time.
# Compare arch/x86/mm/fault.c:vmalloc_fault() (until 5.7), which copied a PGD entry.
cdef int vmalloc_fault(vm_fault* f) noexcept nogil:
    cdef uint64_t* pte = pte_offset_locked(f.mm, f.address)
    cdef uint64_t first = f.address & ~<uint64_t>(PAGE_SIZE - 1)
    cdef uint64_t last = first
    cdef uint64_t* at
    if pte == NULL or not pte[0] & PTE_PRESENT:
        return FAULT_MAPERR
    if f.access == FAULT_WRITE and not pte[0] & PTE_RW:
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
        tlb_fill_locked(f.mm, first, last + PAGE_SIZE)
    f.pte = pte
    return refill(f)


# Mirrors: arch/x86/mm/fault.c:access_error(); PROT_WRITE or PROT_EXEC alone is readable.
cdef inline bint access_ok(const vm_area_struct* vma, int access) noexcept nogil:
    if access == FAULT_WRITE:
        return vma.vm_flags & VM_WRITE != 0
    return vma.vm_flags & VM_ACCESS != 0


# The entry allows the access already: another thread was faster, or it is a TLB miss.
cdef int refill(vm_fault* f) noexcept nogil:
    cdef uint64_t entry = f.pte[0] | PTE_ACCESSED
    cdef unsigned int host = HOST_NONE
    if f.vma != NULL:               # NULL: the vmalloc area's, which is not noted
        kind_known(f, KIND_REFILL)
    if f.access == FAULT_WRITE:
        entry |= PTE_DIRTY | PTE_SOFT_DIRTY
    if f.hardware:
        # An entry that was written before is opened for writing at once.
        host = HOST_WRITE if entry & PTE_RW and entry & PTE_DIRTY else HOST_READ
        count_vm_event(f.mm.mmu.m, HOST_SPURIOUS, 1)
        if pte_host(entry) >= host:
            f.pte[0] = entry
            tlb_refresh_locked(f.mm, f.address, f.pte)
            return FAULT_OK
        if unlikely(is_huge_locked(f.mm, f.address)):
            f.pte[0] = entry
            fill_huge_locked(f.mm, f.address)
    return install(f, entry, host)


# Set the entry; a raw access needs the host's mapping as well.
cdef inline int install(vm_fault* f, uint64_t entry, unsigned int host) noexcept nogil:
    cdef int rc = tlb_install_locked(f.mm, f.address, f.pte, entry,
                                     host if f.hardware else <unsigned int>HOST_NONE)
    part_done(f, PART_HOST_MAP)
    return FAULT_OK if rc == 0 else FAULT_HOST


# ---- private anonymous memory -----------------------------------------------

# Mirrors: mm/memory.c:do_anonymous_page().
cdef int do_anonymous_page(vm_fault* f) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef page* p
    if f.access != FAULT_WRITE:
        kind_known(f, KIND_ZERO_PAGE)
        if unlikely(mm.mmu.thp_zero_page) and huge_zero_fault(f) == 0:
            return FAULT_OK
        return install(f, make_entry(f.vma, mm.mmu.zero_pfn) | PTE_SPECIAL, HOST_READ)
    kind_known(f, KIND_ANON)
    if unlikely(folios_wanted(mm, f.vma) != 0) and anon_folio_fault(f) == 0:
        return FAULT_OK
    p = new_anon_page(f, NULL)
    if p == NULL:
        return FAULT_OOM
    return install(f, make_entry(f.vma, page_to_pfn(mm.mmu.m, p)) | WRITTEN, HOST_WRITE)


# A frame for the fault, a copy of `source` or zero.
cdef inline page* new_anon_page(vm_fault* f, const page* source) noexcept nogil:
    cdef machine* m = f.mm.mmu.m
    # No constant to gcc: what it puts in the place of libc's memset is slower by a third.
    cdef uint64_t length = <uint64_t>PAGE_SIZE << f.order
    cdef page* p = NULL
    if source == NULL and (f.hardware or run_of(m, f.pte) != NULL):
        p = anon_run_page(f)
    if p == NULL:
        p = anon_page(f.mm, f.vma, f.address, source)
    if unlikely(p == NULL):
        return NULL
    part_done(f, PART_ALLOC)
    if source != NULL:
        memcpy(<void*>page_address(m, p), <void*>page_address(m, source), length)
    else:
        memset(<void*>page_address(m, p), 0, length)
    part_done(f, PART_ZERO_OR_COPY)
    return p


# The frame that a run keeps for the page, or NULL.
cdef inline page* anon_run_page(vm_fault* f) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef page_run* run
    cdef page* p
    if folios_wanted(mm, f.vma) >> HPAGE_PMD_ORDER != 0 or (
            unlikely(f.vma.anon_vma == NULL) and anon_vma_prepare(mm, f.vma) != 0):
        return NULL
    run = mm_run_locked(mm, f.vma, f.address, f.pte)
    if run == NULL:
        return NULL
    p = alloc_run_pages(mm.mmu.m, run, <unsigned int>(f.address >> PAGE_SHIFT) & 511, 0,
                        policy_node(mm, f.vma, f.address, NULL), GFP_FAULT)
    if p != NULL:
        page_add_new_anon_rmap(mm, f.vma, f.address, p)
    return p


cdef page* anon_page(mm_struct* mm, vm_area_struct* vma, uint64_t addr,
                     const page* source) noexcept nogil:
    cdef page* p
    if unlikely(vma.anon_vma == NULL) and anon_vma_prepare(mm, vma) != 0:
        return NULL
    p = vma_alloc_pages(mm, vma, addr, GFP_FAULT, 0, source)
    if unlikely(p == NULL):
        return NULL
    page_add_new_anon_rmap(mm, vma, addr, p)
    return p


# The page comes back, and a store goes on as one to a page that is mapped.
cdef int do_swap_page(vm_fault* f) noexcept nogil:
    cdef uint64_t entry = 0
    cdef int rc
    kind_known(f, KIND_SWAP)
    rc = swap_in_locked(f.mm, f.vma, f.address, f.pte, &entry, &f.major)
    if rc != FAULT_OK:
        return rc
    part_done(f, PART_ALLOC)
    if f.access != FAULT_WRITE:
        return install(f, entry, HOST_READ)
    if pfn_to_page(f.mm.mmu.m, pte_pfn(entry)).flags & (1 << PG_anon_exclusive):
        return install(f, entry | WRITTEN, HOST_WRITE)
    install(f, entry, HOST_NONE)
    return do_wp_page(f)


# A store to a present, read-only entry of a writable VMA.  Every host mapping of the frame
# is read-only (fork saw to that before it shared it), so that the copy cannot miss a store.
# Mirrors: mm/memory.c:do_wp_page() => wp_page_reuse(), wp_page_copy().
cdef int do_wp_page(vm_fault* f) noexcept nogil:
    cdef machine* m = f.mm.mmu.m
    cdef uint64_t entry = f.pte[0]
    cdef bint zero = entry & PTE_SPECIAL != 0
    cdef page* old = pfn_to_page(m, pte_pfn(entry))
    cdef page* new
    cdef int rc
    if unlikely(is_huge_locked(f.mm, f.address)):
        if zero and huge_zero_wp(f) == 0:
            return FAULT_OK
        if reuse_huge_locked(f.mm, f.address, True):
            kind_known(f, KIND_REUSE)
            if f.hardware:
                fill_huge_locked(f.mm, f.address)
            return install(f, f.pte[0], HOST_WRITE)
        split_huge_locked(f.mm, f.address)  # this page is going to differ from its neighbours
    if not zero and old.flags & (1 << PG_anon) and (
            old.flags & (1 << PG_anon_exclusive)
            or load64(&old.counts.word) == ONE_OWNER):
        # The others dropped their references after their flushes, and nobody can take a new
        # one: sharing needs an entry that maps it, and the only one is under our lock.
        set_anon_exclusive(old)
        count_vm_event(m, PGREUSE, 1)
        kind_known(f, KIND_REUSE)
        return install(f, entry | WRITTEN | PTE_ACCESSED, HOST_WRITE)
    if (unlikely(folios_wanted(f.mm, f.vma) != 0) and not zero and old.flags & (1 << PG_anon)
            and cow_block_fault(f) == 0):
        return FAULT_OK
    kind_known(f, KIND_ANON if zero else KIND_COW)
    new = new_anon_page(f, NULL if zero else old)
    if new == NULL:
        return FAULT_OOM
    if not zero and old.flags & (1 << PG_anon) and donate_copy_locked(
            f.mm, f.vma, f.pte, old, new):
        return install(f, entry | WRITTEN | PTE_ACCESSED, HOST_WRITE)
    rc = install(f, make_entry(f.vma, page_to_pfn(m, new)) | WRITTEN, HOST_WRITE)
    if not zero:
        replaced(f.mm, f.vma, old)
    return rc


# A copy stands where the page was.
cdef inline void replaced(mm_struct* mm, const vm_area_struct* vma, page* old) noexcept nogil:
    if unlikely(vma.vm_flags & VM_LOCKED):
        munlock_page(mm.mmu, old)
    page_remove_rmap(mm, old)


# A page that is to be pinned for reading must stay the process's own: whoever writes later
# would otherwise get a copy, and the pin the old one.
# Mirrors: do_wp_page() with FAULT_FLAG_UNSHARE.
cdef int unshare_page_locked(mm_struct* mm, uint64_t addr, uint64_t* pte) noexcept nogil:
    cdef machine* m = mm.mmu.m
    cdef uint64_t entry = pte[0]
    cdef page* old = pfn_to_page(m, pte_pfn(entry))
    cdef page* new
    cdef vma_slot* slot = vma_find(&mm.vmas, addr)
    cdef int rc
    if entry & PTE_SPECIAL or not old.flags & (1 << PG_anon) or (
            old.flags & (1 << PG_anon_exclusive)):
        return FAULT_OK
    if is_huge_locked(mm, addr):
        if reuse_huge_locked(mm, addr, False):
            return FAULT_OK
        split_huge_locked(mm, addr)
    if load64(&old.counts.word) == ONE_OWNER:
        set_anon_exclusive(old)
        return FAULT_OK
    new = anon_page(mm, slot.vma, addr, old)
    if new == NULL:
        return FAULT_OOM
    memcpy(<void*>page_address(m, new), <void*>page_address(m, old), PAGE_SIZE)
    rc = tlb_install_locked(mm, addr, pte, (entry & ~<uint64_t>PTE_PFN_MASK) | (
        page_to_pfn(m, new) << PAGE_SHIFT), HOST_NONE)
    replaced(mm, slot.vma, old)
    return FAULT_OK if rc == 0 else FAULT_HOST


# ---- shared memory ----------------------------------------------------------

# Mirrors: mm/memory.c:do_fault() => do_read_fault(), do_cow_fault(), do_shared_fault().
cdef int do_fault(vm_fault* f) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef vm_area_struct* vma = f.vma
    cdef bint copies = f.access == FAULT_WRITE and not vma.vm_flags & VM_SHARED
    cdef uint64_t entry
    cdef int rc = FAULT_OK
    cdef page* p
    kind_known(f, KIND_COW if copies else KIND_SHARED)
    # Before the page is looked for: behind the end it is there all the same.
    if copies and vma.anon_vma == NULL and anon_vma_prepare(mm, vma) != 0:
        return FAULT_OOM
    if f.access != FAULT_WRITE and mm.mmu.fault_around > PAGE_SIZE:
        fault_around(f)
        if f.pte[0] != 0:
            return install(f, f.pte[0] | PTE_ACCESSED, HOST_READ)
    p = object_page(f, vma.vm_object, linear_page_index(vma, f.address), True, &rc)
    if p == NULL:
        return rc
    if copies:
        rc = do_cow_fault(f, p)
        put_page(mm.mmu.m, p)
        return rc
    if f.access == FAULT_WRITE and vma.vm_object.is_file:
        rc = filemap_mkwrite(vma.vm_object, p)
        if rc != FAULT_OK:
            put_page(mm.mmu.m, p)
            return rc
    if mm.mmu.fault_around > PAGE_SIZE and f.major:
        # What was read with it is mapped with it.
        fault_around(f)
        if f.pte[0] != 0:
            put_page(mm.mmu.m, p)
            entry = f.pte[0] | PTE_ACCESSED
            return install(f, entry | WRITTEN, HOST_WRITE) if f.access == FAULT_WRITE else (
                install(f, entry, HOST_READ))
    part_done(f, PART_ALLOC)
    map_shared(mm, vma, p)
    entry = make_entry(vma, page_to_pfn(mm.mmu.m, p)) | first_rights(vma)
    if f.access == FAULT_WRITE:
        return install(f, entry | WRITTEN, HOST_WRITE)
    return install(f, entry, HOST_READ)


# Shared anonymous memory is never written back: what may be written is writable from the first
# access on.  The first store to a file's page is to be noticed.
cdef inline uint64_t first_rights(const vm_area_struct* vma) noexcept nogil:
    return PTE_RW if vma.vm_flags & VM_WRITE and not vma.vm_object.is_file else 0


cdef inline page* object_page(vm_fault* f, address_space* object, uint64_t index, bint make,
                              int* rc_ret) noexcept nogil:
    cdef int nid = policy_node(f.mm, f.vma, f.address, NULL) if make else -1
    if object.is_file:
        return filemap_get_page(object, index, nid, make, rc_ret, &f.major)
    return shmem_get_page(object, index, nid, make, rc_ret, &f.major)


# A store to a page of a file that is mapped privately, the first access to it.
cdef int do_cow_fault(vm_fault* f, const page* source) noexcept nogil:
    cdef page* new = new_anon_page(f, source)
    if new == NULL:
        return FAULT_OOM
    return install(f, make_entry(f.vma, page_to_pfn(f.mm.mmu.m, new)) | WRITTEN, HOST_WRITE)


# A store to a page that is mapped shared, and read-only so that this is noticed.
# Mirrors: mm/memory.c:wp_page_shared().
cdef int wp_page_shared(vm_fault* f) noexcept nogil:
    cdef address_space* object = f.vma.vm_object
    cdef int rc
    kind_known(f, KIND_REUSE)
    if object.is_file:
        rc = filemap_mkwrite(object, pfn_to_page(f.mm.mmu.m, pte_pfn(f.pte[0])))
        if rc != FAULT_OK:
            return rc
    return install(f, f.pte[0] | WRITTEN | PTE_ACCESSED, HOST_WRITE)


# The reference that the lookup took becomes the mapping's.
cdef inline void map_shared(mm_struct* mm, const vm_area_struct* vma, page* p) noexcept nogil:
    cdef page_counts now
    now.word = atomic64_add(&p.counts.word, ONE_MAP, SEQ_CST)
    if now.c.mapcount == 0:
        atomic64_add_return(&mm.mmu.nr_file_mapped, 1, SEQ_CST)
    if vma.vm_object.is_file:
        mm.core.file_rss += 1
    else:
        mm.core.shmem_rss += 1
    if unlikely(vma.vm_flags & VM_LOCKED):
        mlock_page(mm.mmu, p)


# Map what the object has of the neighbourhood, within the VMA and the page table, too.
# Mirrors: mm/memory.c:do_fault_around().
cdef void fault_around(vm_fault* f) noexcept nogil:
    cdef mm_struct* mm = f.mm
    cdef vm_area_struct* vma = f.vma
    cdef uint64_t addr = f.address
    cdef uint64_t* pte = f.pte
    cdef int64_t nr = <int64_t>(mm.mmu.fault_around >> PAGE_SHIFT)
    cdef int64_t at = <int64_t>((addr >> PAGE_SHIFT) & 511)
    cdef int64_t into = <int64_t>((addr - vma.vm_start) >> PAGE_SHIFT)
    cdef int64_t pages = <int64_t>((vma.vm_end - vma.vm_start) >> PAGE_SHIFT)
    cdef int64_t first = max(at & -nr, at - min(at, into))
    cdef int64_t end = min(min(first + nr, <int64_t>512), at + pages - into)
    cdef uint64_t base = (addr & ~<uint64_t>(PAGE_SIZE - 1)) - (<uint64_t>at << PAGE_SHIFT)
    cdef uint64_t where, entry
    cdef page* p
    cdef int rc = FAULT_OK
    cdef int64_t i
    for i in range(first, end):
        if pte[i - at] != 0:
            continue
        where = base + (<uint64_t>i << PAGE_SHIFT)
        p = object_page(f, vma.vm_object, linear_page_index(vma, where), False, &rc)
        if p == NULL:
            continue
        map_shared(mm, vma, p)
        entry = make_entry(vma, page_to_pfn(mm.mmu.m, p)) & ~<uint64_t>PTE_ACCESSED
        tlb_install_locked(mm, where, pte + (i - at),
                           entry | first_rights(vma), HOST_NONE)
