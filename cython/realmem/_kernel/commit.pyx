# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# What could fail comes first: descriptors, page tables to move to, what overcommit says.
# A VMA that only changes keeps its descriptor, and with it its anon_vma.
from libc.errno cimport EAGAIN, ENOMEM, ESRCH
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.account cimport vm_stat_account
from realmem._kernel.address_space cimport mapping_get, mapping_put
from realmem._kernel.huge cimport move_huge_locked
from realmem._kernel.mm_lock cimport lock_task, unlock_task
from realmem._kernel.mm_run cimport free_tables_locked
from realmem._kernel.mm_types cimport (
    HOST_NOACC, HOST_NONE, HOST_READ, PGDIR_SHIFT, PMD_SHIFT, PTE_DIRTY, PTE_NX,
    PTE_PRESENT, PTE_PROTNONE, PTE_RW, PTE_SOFT_DIRTY, PTE_SPECIAL, PUD_SHIFT, VM_ACCESS,
    VM_EXEC, VM_SHARED, VM_WRITE, mm_struct, pte_pfn, pte_present, pte_with_host,
    vm_area_struct, vma_cursor, vma_slot,
)
from realmem._kernel.pgtable cimport (
    NO_HUGE, PTES_ALIKE, PTES_SPLIT, clear_pte_locked,
    next_table_locked, pte_alloc_locked, pte_cursor, pte_first, pte_next, pte_skip_table,
    set_pte_locked, split_huge_locked, tables_reserve_locked, tables_unreserve_locked,
)
from realmem._kernel.quicklist cimport quicklist_trim
from realmem._kernel.rmap cimport (
    anon_vma_get, anon_vma_prepare, anon_vma_put, rmap_link, rmap_relink_begins, rmap_relink_ends,
    rmap_unlink,
)
from realmem._kernel.shmem cimport vm_enough_memory
from realmem._kernel.tlb cimport tlb_flush_locked, tlb_protect_locked
from realmem._kernel.vmaindex cimport (
    VMA_INDEX_CAPACITY, vm_area_alloc, vm_area_free_list, vma_at, vma_erase, vma_find, vma_first,
    vma_insert, vma_next,
)
from realmem._kernel.zap cimport mlock_range_locked, page_mapcount, zap_range_locked
from realmem.compiler cimport BUG, SEQ_CST, atomic64_add_return
from realmem.types cimport PAGE_SHIFT, PG_anon, PG_file, page, pfn_to_page

cdef enum:
    PMD_SIZE = 1 << PMD_SHIFT
    PGT_CACHE_MIN = 25          # pages that a quicklist keeps after a teardown, at least
    PGT_CACHE_STEP = 16         # and gives back at most

# What a run of a log holds between its steps.
cdef struct transaction:
    mm_struct* mm
    vm_area_struct* spare       # descriptors at hand
    vm_area_struct* gone        # ... that are to be freed


cdef int mm_commit(mm_struct* mm, uint64_t id, uint64_t generation, const mm_step* steps,
                   int64_t n, const new_vma* vmas, int64_t charge) noexcept nogil:
    cdef transaction t
    cdef int64_t accounted, i
    cdef int rc = 0
    if not lock_task(mm, id):
        return -ESRCH
    if mm.generation != generation:
        rc = -EAGAIN
    else:
        rc = prepare(&t, mm, steps, n, vmas, charge)
    if rc == 0:
        accounted = mm.core.accounted
        for i in range(n):
            run_step(&t, steps + i, vmas)
        # What was charged beforehand is in the books already.
        accounted = mm.core.accounted - accounted - max(charge, <int64_t>0)
        atomic64_add_return(&mm.mmu.committed, accounted, SEQ_CST)
        vm_area_free_list(mm.mmu.m, t.spare)
        free_gone(&t)
        tables_unreserve_locked(mm)
        # Compare mm/mmu_gather.c:tlb_finish_mmu() => check_pgt_cache() of those days.
        quicklist_trim(mm.mmu.m, PGT_CACHE_MIN, PGT_CACHE_STEP)
    unlock_task(mm)
    return rc


cdef int prepare(transaction* t, mm_struct* mm, const mm_step* steps, int64_t n,
                 const new_vma* vmas, int64_t charge) noexcept nogil:
    cdef int64_t needed = 0, tables = 0
    cdef int64_t i
    t.mm = mm
    t.gone = NULL
    t.spare = NULL
    for i in range(n):
        if steps[i].what == STEP_VMAS:
            needed += new_descriptors(steps + i, vmas)
        elif steps[i].what == STEP_MOVE:
            tables += tables_to_move(mm, steps[i].start, steps[i].end)
    if mm.vmas.count + needed > VMA_INDEX_CAPACITY:
        return -ENOMEM
    if charge > 0 and vm_enough_memory(mm.mmu, charge, mm.core.may_reserve,
                                       mm.core.total_vm) != 0:
        return -ENOMEM
    if needed > 0:
        t.spare = vm_area_alloc(mm.mmu.m, needed)
    if (needed > 0 and t.spare == NULL) or tables_reserve_locked(mm, tables) != 0:
        vm_area_free_list(mm.mmu.m, t.spare)
        if charge > 0:
            atomic64_add_return(&mm.mmu.committed, -charge, SEQ_CST)
        return -ENOMEM
    return 0


# How many descriptors a step takes beyond those that it replaces.
cdef int64_t new_descriptors(const mm_step* step, const new_vma* vmas) noexcept nogil:
    cdef int64_t i, needed = 0
    cdef const new_vma* vma
    for i in range(step.first, step.first + step.count):
        vma = vmas + i
        if (not vma.has_source or vma.source < step.start or vma.source >= step.end
                or (i > step.first and (vma - 1).has_source and (vma - 1).source == vma.source)):
            needed += 1
    return needed


# Page tables that the entries of a range can need elsewhere: each table's may fall in two, and
# so may those of the levels above.
cdef int64_t tables_to_move(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t addr = start
    cdef uint64_t pud = <uint64_t>-1, pgd = <uint64_t>-1
    cdef int64_t tables = 0
    while next_table_locked(mm, &addr, end) != NULL:
        tables += 2
        if addr >> PUD_SHIFT != pud:
            pud = addr >> PUD_SHIFT
            tables += 2
        if addr >> PGDIR_SHIFT != pgd:
            pgd = addr >> PGDIR_SHIFT
            tables += 2
        addr = ((addr >> PMD_SHIFT) + 1) << PMD_SHIFT
    return tables


cdef void run_step(transaction* t, const mm_step* step, const new_vma* vmas) noexcept nogil:
    cdef mm_struct* mm = t.mm
    cdef vma_slot* slot
    if step.what == STEP_VMAS:
        replace_vmas(t, step, vmas)
    elif step.what == STEP_ZAP:
        zap_range_locked(mm, step.start, step.end, True)
        free_tables_locked(mm, step.start, step.end)
    elif step.what == STEP_PROTECT:
        change_protection(mm, step.start, step.end)
    elif step.what == STEP_MOVE:
        move_page_tables(mm, step.start, step.to, step.end - step.start)
    elif step.what == STEP_ANON:
        slot = vma_find(&mm.vmas, step.start)
        if slot != NULL:
            anon_vma_prepare(mm, slot.vma)      # without memory, as if a fault had found none
    else:
        mlock_range_locked(mm, step.start, step.end, step.what == STEP_LOCK)


# ---- VMAs -------------------------------------------------------------------

# Old ones are taken out, then the new ones are put in: those with a source in the range take
# its descriptor over, the first of them; further ones share its anon_vma.
cdef void replace_vmas(transaction* t, const mm_step* step, const new_vma* vmas) noexcept nogil:
    cdef mm_struct* mm = t.mm
    cdef vm_area_struct* old = NULL     # in descending order
    cdef vm_area_struct* vma
    cdef vm_area_struct* source
    cdef vma_cursor cursor
    cdef vma_slot* slot
    cdef int64_t i
    rmap_relink_begins(mm.mmu)
    while True:
        slot = vma_first(&mm.vmas, step.start, &cursor)
        if slot != NULL and slot.start < step.start:
            slot = vma_next(&cursor)
        if slot == NULL or slot.start >= step.end:
            break
        vma = slot.vma
        vma_erase(&mm.vmas, vma.vm_start)
        vm_stat_account(mm.core, vma.vm_flags, -pages_of(vma))
        rmap_unlink(mm.mmu, vma)
        vma.vm_next = old
        old = vma
    for i in range(step.first, step.first + step.count):
        vma = NULL
        source = NULL
        if vmas[i].has_source:
            vma = take(&old, vmas[i].source)
            if vma == NULL:
                source = vma_at(&mm.vmas, vmas[i].source) if (
                    vmas[i].source < step.start or vmas[i].source >= step.end
                ) else claimed(mm, step, vmas, i)
        if vma == NULL:
            vma = t.spare
            if vma == NULL:
                BUG("a change needs more VMAs than it was given")
            t.spare = vma.vm_next
        enter(t, vma, vmas + i, source)
    rmap_relink_ends(mm.mmu)
    while old != NULL:
        vma = old
        old = vma.vm_next
        vma.vm_next = t.gone
        t.gone = vma


# The VMA of a list that began at start, taken out of it; NULL: none.
cdef vm_area_struct* take(vm_area_struct** list, uint64_t start) noexcept nogil:
    cdef vm_area_struct* vma
    while list[0] != NULL:
        vma = list[0]
        if vma.vm_start == start:
            list[0] = vma.vm_next
            return vma
        list = &vma.vm_next
    return NULL


# The VMA that took the source of the i-th over in this step.
cdef vm_area_struct* claimed(mm_struct* mm, const mm_step* step, const new_vma* vmas,
                             int64_t i) noexcept nogil:
    cdef int64_t j
    for j in range(step.first, i):
        if vmas[j].has_source and vmas[j].source == vmas[i].source:
            return vma_at(&mm.vmas, vmas[j].start)
    return NULL


cdef void enter(transaction* t, vm_area_struct* vma, const new_vma* new,
                const vm_area_struct* source) noexcept nogil:
    cdef mm_struct* mm = t.mm
    if vma.vm_object != new.object:
        if new.object != NULL:
            mapping_get(new.object)
        if vma.vm_object != NULL:
            mapping_put(vma.vm_object)
        vma.vm_object = new.object
    if source != NULL and vma.anon_vma == NULL:
        if source.anon_vma != NULL:
            anon_vma_get(source.anon_vma)
        vma.anon_vma = source.anon_vma
        vma.anon_id = source.anon_id
        vma.forked = source.forked
    vma.vm_start = new.start
    vma.vm_end = new.end
    vma.vm_flags = new.flags
    vma.vm_pgoff = new.pgoff
    vma.policy = new.policy
    vma.file = new.file
    vma.vm_mm = mm
    vma.vm_next = NULL
    vma_insert(&mm.vmas, vma)
    # Mirrors: mm/huge_memory.c:vma_adjust_trans_huge().
    if new.start & (PMD_SIZE - 1):
        split_huge_locked(mm, new.start)
    if new.end & (PMD_SIZE - 1):
        split_huge_locked(mm, new.end)
    vm_stat_account(mm.core, vma.vm_flags, pages_of(vma))
    rmap_link(mm.mmu, vma)


cdef inline int64_t pages_of(const vm_area_struct* vma) noexcept nogil:
    return <int64_t>((vma.vm_end - vma.vm_start) >> PAGE_SHIFT)


# Their frames were unmapped by the steps that followed.
cdef void free_gone(transaction* t) noexcept nogil:
    cdef vm_area_struct* vma = t.gone
    while vma != NULL:
        if vma.vm_object != NULL:
            mapping_put(vma.vm_object)
        if vma.anon_vma != NULL:
            anon_vma_put(t.mm.mmu, vma.anon_vma)
        vma = vma.vm_next
    vm_area_free_list(t.mm.mmu.m, t.gone)


# ---- entries ----------------------------------------------------------------

cdef void change_protection(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef vma_cursor cursor
    cdef vma_slot* slot = vma_first(&mm.vmas, start, &cursor)
    while slot != NULL and slot.start < end:
        protect_range(mm, slot.vma, max(start, slot.start), min(end, slot.end))
        slot = vma_next(&cursor)


# The host loses what it may no longer have first; what it may have more, faults bring.
cdef void protect_range(mm_struct* mm, const vm_area_struct* vma, uint64_t start,
                        uint64_t end) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte
    if not vma.vm_flags & VM_ACCESS:
        tlb_protect_locked(mm, start, end, HOST_NOACC, False)
    elif not vma.vm_flags & VM_WRITE:
        tlb_protect_locked(mm, start, end, HOST_READ, False)
    pte = pte_first(&c, mm, start, end, PTES_ALIKE)
    while pte != NULL:
        if pte_present(pte[0]):
            pte[0] = with_rights(mm, vma, pte[0])
        pte = pte_next(&c)


# Mirrors: mm/mprotect.c:change_pte_range(), can_change_pte_writable().
cdef inline uint64_t with_rights(mm_struct* mm, const vm_area_struct* vma,
                                 uint64_t entry) noexcept nogil:
    cdef uint64_t flags = vma.vm_flags
    cdef page* p
    cdef bint opens
    entry &= ~<uint64_t>(PTE_PRESENT | PTE_PROTNONE | <uint64_t>PTE_NX)
    entry |= PTE_PRESENT if flags & VM_ACCESS else PTE_PROTNONE
    if not flags & VM_EXEC:
        entry |= <uint64_t>PTE_NX
    if not flags & VM_WRITE:
        return entry & ~<uint64_t>PTE_RW
    if entry & PTE_DIRTY and not entry & PTE_SPECIAL:
        # A store would only be told that it may.
        p = pfn_to_page(mm.mmu.m, pte_pfn(entry))
        # A file's page asks at the next store: it may have been written back.
        if flags & VM_SHARED:
            opens = not vma.vm_object.is_file
        else:
            opens = (p.flags & (1 << PG_anon) and page_mapcount(p) == 1
                     and p.counts.c.refcount == 1)
        if opens:
            entry |= PTE_RW
    return entry


# Mirrors: mm/mremap.c:move_ptes().  What moved counts as dirtied, as in Linux.
cdef void move_page_tables(mm_struct* mm, uint64_t old, uint64_t new,
                           uint64_t length) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte
    cdef uint64_t* to
    cdef uint64_t entry
    tlb_flush_locked(mm, old, old + length)
    tlb_flush_locked(mm, new, new + length)
    # Huge entries stay so where they come to lie on such a bound again.
    pte = pte_first(&c, mm, old, old + length, PTES_ALIKE if (new - old) & (PMD_SIZE - 1) == 0
                    else PTES_SPLIT)
    while pte != NULL:
        entry = pte[0]
        to = pte_alloc_locked(mm, new + (c.addr - old))
        if to == NULL:
            BUG("a page table was not set aside")
        if c.huge != NO_HUGE:
            c.huge = NO_HUGE
            move_huge_locked(mm, c.addr, new + (c.addr - old), to)
            pte = pte_skip_table(&c)
            continue
        clear_pte_locked(mm, pte)
        if pte_present(entry):
            entry = pte_with_host(entry, HOST_NONE) | PTE_SOFT_DIRTY
            # Who writes a file's page back may be looking for it where it was.
            if pfn_to_page(mm.mmu.m, pte_pfn(entry)).flags & (1 << PG_file):
                entry &= ~<uint64_t>(PTE_RW | PTE_DIRTY)
        set_pte_locked(mm, to, entry)
        pte = pte_next(&c)
    free_tables_locked(mm, old, old + length)
