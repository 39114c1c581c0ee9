# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# What fork, munmap and exit do to page tables, and the software way in.
from libc.errno cimport ENOMEM, ESRCH
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from realmem._kernel.account cimport vm_stat_account
from realmem._kernel.address_space cimport mapping_get, mapping_put
from realmem._kernel.edges cimport host_view
from realmem._kernel.fault cimport anon_page
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.huge cimport copy_huge_locked, huge_bits_locked
from realmem._kernel.huge_zero cimport huge_zero_dup_locked, huge_zero_put_locked
from realmem._kernel.mm_lock cimport lock_live, lock_task, unlock_task
from realmem._kernel.mm_run cimport free_tables_locked
from realmem._kernel.mm_types cimport (
    HOST_NONE, HOST_READ, MM_DEAD, NR_RLIMITS, PMD_SHIFT, PTE_ACCESSED,
    PTE_DIRTY, PTE_HOST_MASK, PTE_PFN_MASK, PTE_PSE, PTE_RW, PTE_SPECIAL, PTE_SWP_EXCLUSIVE,
    TASK_SIZE, VM_ACCOUNT,
    VM_DONTCOPY, VM_GROWSDOWN, VM_LOCKED_MASK, VM_MAYBE_GUARD, VM_SOFTDIRTY,
    VM_WIPEONFORK, address_space, is_swap_pte, linear_page_index, mm_struct, mmu,
    pinned_page, pte_pfn, pte_present, pte_with_host, vm_area_struct, vma_cursor, vma_slot,
)
from realmem._kernel.pgtable cimport (
    PTES_READ, is_huge_locked, pgd_free, pte_alloc_locked, pte_cursor, pte_first, pte_next,
    pte_offset_locked, pte_skip_table, table_of, walk_step,
)
from realmem._kernel.quicklist cimport quicklist_trim
from realmem._kernel.rmap cimport anon_vma_fork, anon_vma_put, rmap_link, rmap_unlink
from realmem._kernel.run cimport run_of
from realmem._kernel.shmem cimport vm_enough_memory
from realmem._kernel.swap cimport swap_duplicate
from realmem._kernel.tlb cimport (
    scratch_flush_locked, tlb_flush_locked, tlb_flush_window_locked, tlb_protect_locked,
)
from realmem._kernel.vmaindex cimport (
    vm_area_alloc, vm_area_free_list, vma_at, vma_find, vma_first, vma_index_clear, vma_insert,
    vma_next,
)
from realmem._kernel.window cimport mm_core_put
from realmem._kernel.zap cimport page_dup_rmap, zap_range_locked
from realmem.compiler cimport SEQ_CST, atomic64_add_return, poke_int
from realmem.types cimport (
    PAGE_SHIFT, PAGE_SIZE, PG_anon, PG_swapbacked, page, page_address, page_to_pfn, pfn_address,
    pfn_to_page,
)

cdef enum:
    PGT_CACHE_MIN = 25          # pages that a quicklist keeps after a teardown, at least
    PGT_CACHE_STEP = 16         # and gives back at most


# ---- fork -------------------------------------------------------------------

cdef int mm_fork(mm_struct* parent, uint64_t parent_id, mm_struct* child) noexcept nogil:
    cdef int rc
    cdef vma_cursor cursor
    cdef vma_slot* slot
    if not lock_task(parent, parent_id):
        return -ESRCH
    mutex_lock(&child.lock)         # the younger of the two: ascending ids
    rc = dup_vmas(parent, child)
    if rc == 0:
        # Invariant 6: no store can reach a frame through a window once this returned, and
        # none can open it again while we hold the lock.
        slot = vma_first(&parent.vmas, 0, &cursor)
        while slot != NULL:
            if needs_copy(slot.vma):
                tlb_protect_locked(parent, slot.start, slot.end, HOST_READ, parent.nr_pins != 0)
            slot = vma_next(&cursor)
        slot = vma_first(&parent.vmas, 0, &cursor)
        while slot != NULL and rc == 0:
            if needs_copy(slot.vma):
                rc = copy_page_range(parent, child, slot)
            slot = vma_next(&cursor)
    mutex_unlock(&child.lock)
    unlock_task(parent)
    return rc


# Where there is no anonymous page and no guard region, faults bring the child what it needs.
# Mirrors: mm/memory.c:vma_needs_copy(), VM_COPY_ON_FORK.
cdef inline bint needs_copy(const vm_area_struct* vma) noexcept nogil:
    return ((vma.anon_vma != NULL or vma.vm_flags & VM_MAYBE_GUARD)
            and not vma.vm_flags & (VM_DONTCOPY | VM_WIPEONFORK))


# Mirrors: kernel/fork.c:dup_mmap().
cdef int dup_vmas(mm_struct* parent, mm_struct* child) noexcept nogil:
    cdef mmu* u = parent.mmu
    cdef vm_area_struct* list = vm_area_alloc(u.m, parent.vmas.count)
    cdef vm_area_struct* vma
    cdef vm_area_struct* of
    cdef vma_cursor cursor
    cdef vma_slot* slot = vma_first(&parent.vmas, 0, &cursor)
    cdef int64_t pages
    cdef int i
    if list == NULL and parent.vmas.count > 0:
        return -ENOMEM
    for i in range(NR_RLIMITS):
        child.core.rlimits[i] = parent.core.rlimits[i]
    child.core.may_lock = parent.core.may_lock
    child.core.may_reserve = parent.core.may_reserve
    if parent.core.huge_zero:
        huge_zero_dup_locked(child)
    while slot != NULL:
        of = slot.vma
        slot = vma_next(&cursor)
        if of.vm_flags & VM_DONTCOPY:
            continue
        pages = <int64_t>((of.vm_end - of.vm_start) >> PAGE_SHIFT)
        # VMA by VMA: in mode 0 only a single one may be too large.
        if of.vm_flags & VM_ACCOUNT and vm_enough_memory(
                u, pages, parent.core.may_reserve, parent.core.total_vm) != 0:
            vm_area_free_list(u.m, list)
            return -ENOMEM          # the child's end gives back what it was charged for
        vma = list
        list = vma.vm_next
        vma.vm_next = NULL
        vma.vm_start = of.vm_start
        vma.vm_end = of.vm_end
        vma.vm_flags = of.vm_flags & ~<uint64_t>VM_LOCKED_MASK
        vma.vm_pgoff = of.vm_pgoff
        vma.policy = of.policy
        vma.vm_mm = child
        if of.vm_object != NULL:
            mapping_get(of.vm_object)
            vma.vm_object = of.vm_object
            vma.file = of.file
        if of.anon_vma != NULL and needs_copy(of):
            anon_vma_fork(u, vma, of)
        vma_insert(&child.vmas, vma)
        rmap_link(u, vma)
        vm_stat_account(child.core, vma.vm_flags, pages)
    vm_area_free_list(u.m, list)
    return 0


cdef int copy_page_range(mm_struct* parent, mm_struct* child,
                         const vma_slot* slot) noexcept nogil:
    cdef pte_cursor c
    cdef uint64_t* pte = pte_first(&c, parent, slot.start, slot.end, PTES_READ)
    cdef uint64_t* table = NULL         # the child's, for the 2 MiB that begin at `base`
    cdef page* holder = NULL            # ... and its frame, which counts what is used of it
    cdef uint64_t base = 1              # no address
    cdef uint64_t entry
    cdef uint64_t* to
    while pte != NULL:
        if c.addr >> PMD_SHIFT != base >> PMD_SHIFT or table == NULL:
            base = c.addr & ~<uint64_t>((1 << PMD_SHIFT) - 1)
            table = pte_alloc_locked(child, base)
            if table == NULL:
                return -ENOMEM
            if is_huge_locked(parent, base) and copy_huge_locked(parent, child, base, table):
                pte = pte_skip_table(&c)
                continue
            holder = table_of(child.mmu, table)
        entry = pte[0]
        if pte_present(entry):
            entry = copy_present_pte(parent, child, slot, c.addr, pte)
            if entry == 0:
                return -ENOMEM
        elif is_swap_pte(entry):
            # Mirrors: mm/memory.c:copy_nonpresent_pte().
            swap_duplicate(parent.mmu, entry)
            entry &= ~<uint64_t>PTE_SWP_EXCLUSIVE
            pte[0] = entry
            child.core.swap_ents += 1
        to = table + ((c.addr >> PAGE_SHIFT) & 511)
        holder.private += to[0] == 0
        to[0] = entry
        pte = pte_next(&c)
    return 0


# The child's entry for a page that is mapped, which is shared with it; 0 without memory.
# Mirrors: mm/memory.c:__copy_present_ptes().
cdef inline uint64_t copy_present_pte(mm_struct* parent, mm_struct* child, const vma_slot* slot,
                                      uint64_t addr, uint64_t* pte) noexcept nogil:
    cdef uint64_t entry = pte[0]
    cdef page* p = pfn_to_page(parent.mmu.m, pte_pfn(entry))
    if slot.vma.vm_object != NULL and not p.flags & (1 << PG_anon):
        # Copied for its guard regions' or copies' sake: what is shared stays as it is.
        page_dup_rmap(p)
        if p.flags & (1 << PG_swapbacked):
            child.core.shmem_rss += 1
        else:
            child.core.file_rss += 1
            # Who writes the page back may have looked for its places before this was one.
            entry &= ~<uint64_t>PTE_RW
        entry &= ~<uint64_t>PTE_DIRTY
    elif pinned_page(parent, entry):
        return pte_with_host(copy_pinned(parent, child, slot, addr, entry), HOST_NONE)
    else:
        entry &= ~<uint64_t>PTE_RW
        pte[0] = entry
        if not entry & PTE_SPECIAL:
            page_dup_rmap(p)
            child.core.anon_rss += 1
    # It was not used through the child's yet.
    return pte_with_host(entry & ~<uint64_t>PTE_ACCESSED, HOST_NONE)


# Who pinned a page goes on with it; the child gets a copy.
# Mirrors: mm/memory.c:copy_present_page().
# Returns: the child's entry, or 0 without memory.
cdef uint64_t copy_pinned(mm_struct* parent, mm_struct* child, const vma_slot* slot,
                          uint64_t addr, uint64_t entry) noexcept nogil:
    cdef vma_slot* theirs = vma_find(&child.vmas, addr)
    cdef page* p
    p = anon_page(child, theirs.vma, addr, pfn_to_page(parent.mmu.m, pte_pfn(entry)))
    if p == NULL:
        return 0
    memcpy(<void*>page_address(child.mmu.m, p), <void*>pfn_address(child.mmu.m, pte_pfn(entry)),
           PAGE_SIZE)
    return (entry & ~<uint64_t>PTE_PFN_MASK) | (page_to_pfn(child.mmu.m, p) << PAGE_SHIFT)


# ---- exit -------------------------------------------------------------------

cdef int mm_exit(mm_struct* mm, uint64_t id) noexcept nogil:
    if not lock_live_or_stillborn(mm, id):
        return -ESRCH
    tlb_flush_window_locked(mm)
    zap_range_locked(mm, 0, <uint64_t>TASK_SIZE, True)
    free_tables_locked(mm, 0, <uint64_t>TASK_SIZE)
    huge_zero_put_locked(mm)
    remove_vmas(mm)
    atomic64_add_return(&mm.mmu.committed, -mm.core.accounted, SEQ_CST)
    pgd_free(mm)
    mm_core_put(mm)
    quicklist_trim(mm.mmu.m, PGT_CACHE_MIN, PGT_CACHE_STEP)
    poke_int(<int*>&mm.state, MM_DEAD)      # window_reap looks without the lock
    mm.mmu = NULL
    mutex_unlock(&mm.lock)
    return 0


cdef void remove_vmas(mm_struct* mm) noexcept nogil:
    cdef vm_area_struct* gone = NULL
    cdef vma_cursor cursor
    cdef vma_slot* slot = vma_first(&mm.vmas, 0, &cursor)
    while slot != NULL:
        rmap_unlink(mm.mmu, slot.vma)
        if slot.vma.vm_object != NULL:
            mapping_put(slot.vma.vm_object)
        if slot.vma.anon_vma != NULL:
            anon_vma_put(mm.mmu, slot.vma.anon_vma)
        slot.vma.vm_next = gone
        gone = slot.vma
        slot = vma_next(&cursor)
    vma_index_clear(&mm.vmas)
    vm_area_free_list(mm.mmu.m, gone)


# An address space that got no window has its PGD all the same.
cdef inline bint lock_live_or_stillborn(mm_struct* mm, uint64_t id) noexcept nogil:
    mutex_lock(&mm.lock)
    if mm.id == id and mm.mmu != NULL:
        return True
    mutex_unlock(&mm.lock)
    return False


# ---- looking ----------------------------------------------------------------

cdef int mm_flush(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil:
    if not lock_live(mm, id):
        return -ESRCH
    tlb_flush_locked(mm, start, end)
    mutex_unlock(&mm.lock)
    return 0


cdef int mm_flush_scratch(mm_struct* mm, uint64_t id) noexcept nogil:
    mutex_lock(&mm.lock)
    if mm.id == id:
        scratch_flush_locked(mm)
    mutex_unlock(&mm.lock)
    return 0


cdef bint mm_maps(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t pfn) noexcept nogil:
    cdef uint64_t* pte
    cdef bint found
    if not lock_live(mm, id):
        return False
    pte = pte_offset_locked(mm, addr)
    found = (pte != NULL and pte_present(pte[0]) and not pte[0] & PTE_SPECIAL
             and pte_pfn(pte[0]) == pfn)
    mutex_unlock(&mm.lock)
    return found


cdef int mm_walk(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t* address_ret,
                 uint64_t* entry_ret) noexcept nogil:
    cdef uint64_t pfn
    cdef uint64_t* pte
    cdef int level = 3
    cdef int steps = 0
    if not lock_live(mm, id):
        return -ESRCH
    pfn = mm.core.pgd_pfn
    while level >= 0:
        level = walk_step(mm.mmu, addr, level, &pfn, address_ret + steps, entry_ret + steps)
        steps += 1
    # What the host has of a run is shown where the entry says nothing of it.
    if level < 0 and steps == 4 and addr < <uint64_t>TASK_SIZE:
        pte = pte_offset_locked(mm, addr)
        if run_of(mm.mmu.m, pte) != NULL and not run_of(mm.mmu.m, pte).registered:
            entry_ret[3] |= host_view(run_of(mm.mmu.m, pte), pte) & <uint64_t>PTE_HOST_MASK
    # A store or a load through a huge entry shows in one of the 512 behind it.
    if addr < <uint64_t>TASK_SIZE and entry_ret[steps - 1] & PTE_PSE:
        entry_ret[steps - 1] |= huge_bits_locked(mm, addr)
    mutex_unlock(&mm.lock)
    return steps


# ---- what Python asks of VMAs -----------------------------------------------

cdef void mm_vma_info(mm_struct* mm, uint64_t id, uint64_t start, uint64_t* anon_id_ret,
                      bint* forked_ret) noexcept nogil:
    cdef vm_area_struct* vma
    if not lock_live(mm, id):
        return
    vma = vma_at(&mm.vmas, start)
    if vma != NULL:
        anon_id_ret[0] = vma.anon_id
        forked_ret[0] = vma.forked
    mutex_unlock(&mm.lock)


cdef int64_t mm_stacks(mm_struct* mm, uint64_t id, uint64_t* addr_ref, uint64_t* ends_ret,
                       uint64_t* starts_ret, int64_t n) noexcept nogil:
    cdef vma_cursor cursor
    cdef vma_slot* slot
    cdef int64_t found = 0
    if not lock_live(mm, id):
        return 0
    slot = vma_first(&mm.vmas, addr_ref[0], &cursor)
    while slot != NULL and found < n:
        if slot.vma.vm_flags & VM_GROWSDOWN:
            ends_ret[found] = slot.end
            starts_ret[found] = slot.start
            found += 1
        addr_ref[0] = slot.end
        slot = vma_next(&cursor)
    mutex_unlock(&mm.lock)
    return found


cdef void mm_growth_seen(mm_struct* mm, uint64_t id, uint64_t generation) noexcept nogil:
    if lock_live(mm, id):
        if mm.generation == generation:
            mm.grown = 0
        mutex_unlock(&mm.lock)


cdef address_space* mm_object_get(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end,
                                  uint64_t* first_ret, uint64_t* last_ret) noexcept nogil:
    cdef vma_slot* slot
    cdef address_space* object = NULL
    if not lock_live(mm, id):
        return NULL
    slot = vma_find(&mm.vmas, start)
    if slot != NULL and slot.start <= start and end <= slot.end:
        object = slot.vma.vm_object
        if object != NULL:
            mapping_get(object)
            first_ret[0] = linear_page_index(slot.vma, start)
            last_ret[0] = linear_page_index(slot.vma, end - PAGE_SIZE)
    mutex_unlock(&mm.lock)
    return object


cdef void mm_clear_soft_dirty(mm_struct* mm, uint64_t id) noexcept nogil:
    cdef vma_cursor cursor
    cdef vma_slot* slot
    if not lock_live(mm, id):
        return
    slot = vma_first(&mm.vmas, 0, &cursor)
    while slot != NULL:
        slot.vma.vm_flags &= ~<uint64_t>VM_SOFTDIRTY
        slot = vma_next(&cursor)
    mutex_unlock(&mm.lock)


cdef int mm_run_on(mm_struct* mm, uint64_t id, int nid) noexcept nogil:
    if not lock_live(mm, id):
        return -ESRCH
    mm.core.owner.nid = nid
    mutex_unlock(&mm.lock)
    return 0
