# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# What fork, munmap and exit do to page tables, and the software way in.
from libc.errno cimport ENOMEM, ESRCH
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from realmem._kernel.fault cimport handle_mm_fault_locked, page_dup_rmap, page_remove_rmap
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_types cimport (
    FAULT_OK, FAULT_READ, FAULT_WRITE, HOST_NONE, MM_DEAD, MM_LIVE, PMD_SHIFT, PTE_PRESENT,
    PTE_RW, PTE_SPECIAL, TASK_SIZE, VM_SHARED, mm_struct, pte_pfn, pte_with_host,
    vm_area_struct, vma_slot,
)
from realmem._kernel.pgtable cimport (
    clear_pte_locked, free_pgtables_locked, next_table_locked, pgd_free, pte_alloc_locked,
    pte_offset_locked, table_of, walk_step,
)
from realmem._kernel.quicklist cimport quicklist_trim
from realmem._kernel.tlb cimport (
    scratch_flush_locked, tlb_flush_locked, tlb_flush_window_locked, tlb_wrprotect_locked,
)
from realmem._kernel.vmaindex cimport vma_dup_locked, vma_remove_all_locked, vma_splice_locked
from realmem._kernel.window cimport mm_core_put
from realmem.types cimport PAGE_SHIFT, PAGE_SIZE, pfn_address, pfn_to_page

cdef enum:
    PGT_CACHE_MIN = 25          # pages that a quicklist keeps after a teardown, at least
    PGT_CACHE_STEP = 16         # and gives back at most


# Lock an address space that may have ended since Python looked.
cdef inline bint lock_live(mm_struct* mm, uint64_t id) noexcept nogil:
    mutex_lock(&mm.lock)
    if mm.id == id and mm.state == MM_LIVE:
        return True
    mutex_unlock(&mm.lock)
    return False


# ---- unmap ------------------------------------------------------------------

cdef int mm_splice(mm_struct* mm, uint64_t id, int64_t at, int64_t removed,
                   const vm_area_struct* vmas, int64_t added, uint64_t start,
                   uint64_t end) noexcept nogil:
    cdef int rc
    if not lock_live(mm, id):
        return -ESRCH
    rc = vma_splice_locked(mm, at, removed, vmas, added)
    if rc == 0 and start < end:
        tlb_flush_locked(mm, start, end)
        zap_range_locked(mm, start, end)
        free_pgtables_locked(mm, start, end)
        # Compare mm/mmu_gather.c:tlb_finish_mmu() => check_pgt_cache() of those days.
        quicklist_trim(mm.mmu.m, PGT_CACHE_MIN, PGT_CACHE_STEP)
    mutex_unlock(&mm.lock)
    return rc


# Clear entries and give their frames up.
# Preconditions: nothing of [start, end) is mapped by the host.
cdef void zap_range_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t addr = start
    cdef uint64_t entry
    cdef uint64_t* table
    cdef uint64_t* pte
    while True:
        table = next_table_locked(mm, &addr, end)
        if table == NULL:
            return
        while addr < end:
            pte = table + ((addr >> PAGE_SHIFT) & 511)
            entry = pte[0]
            if entry != 0:
                clear_pte_locked(mm, pte)
                if not entry & PTE_SPECIAL:
                    mm.core.anon_rss -= 1
                    page_remove_rmap(mm.mmu, pfn_to_page(mm.mmu.m, pte_pfn(entry)))
            addr += PAGE_SIZE
            if addr & ((1 << PMD_SHIFT) - 1) == 0:
                break


# ---- fork -------------------------------------------------------------------

cdef int mm_fork(mm_struct* parent, uint64_t parent_id, mm_struct* child) noexcept nogil:
    cdef int rc
    cdef int64_t i
    cdef vma_slot* vma
    if not lock_live(parent, parent_id):
        return -ESRCH
    mutex_lock(&child.lock)         # the younger of the two: ascending ids
    rc = vma_dup_locked(child, parent)
    if rc == 0:
        # Invariant 6: no store can reach a frame through the window once this returned, and
        # none can open it again while we hold the lock.
        tlb_wrprotect_locked(parent, parent.user_start, parent.user_start + parent.length)
    for i in range(parent.vmas.count):
        vma = parent.vmas.slots + i
        if rc == 0:
            rc = copy_page_range(parent, child, vma)
    mutex_unlock(&child.lock)
    mutex_unlock(&parent.lock)
    return rc


cdef int copy_page_range(mm_struct* parent, mm_struct* child,
                         const vma_slot* vma) noexcept nogil:
    cdef uint64_t addr = vma.start
    cdef uint64_t entry
    cdef uint64_t* table
    cdef uint64_t* pte
    cdef uint64_t* child_pte
    cdef uint64_t* child_table
    cdef uint64_t used
    while True:
        table = next_table_locked(parent, &addr, vma.end)
        if table == NULL:
            return 0
        child_table = NULL
        used = 0
        while addr < vma.end:
            pte = table + ((addr >> PAGE_SHIFT) & 511)
            entry = pte[0]
            if entry != 0:
                if child_table == NULL:
                    child_pte = pte_alloc_locked(child, addr)
                    if child_pte == NULL:
                        return -ENOMEM
                    child_table = child_pte - ((addr >> PAGE_SHIFT) & 511)
                if not vma.vma.vm_flags & VM_SHARED:
                    entry &= ~<uint64_t>PTE_RW
                    pte[0] = entry
                if not entry & PTE_SPECIAL:
                    page_dup_rmap(pfn_to_page(parent.mmu.m, pte_pfn(entry)))
                    child.core.anon_rss += 1
                child_table[(addr >> PAGE_SHIFT) & 511] = pte_with_host(entry, HOST_NONE)
                used += 1
            addr += PAGE_SIZE
            if addr & ((1 << PMD_SHIFT) - 1) == 0:
                break
        if used != 0:
            table_of(child.mmu, child_table).private += used


# ---- exit -------------------------------------------------------------------

cdef int mm_exit(mm_struct* mm, uint64_t id) noexcept nogil:
    if not lock_live_or_stillborn(mm, id):
        return -ESRCH
    vma_remove_all_locked(mm)
    tlb_flush_window_locked(mm)
    zap_range_locked(mm, 0, <uint64_t>TASK_SIZE)
    free_pgtables_locked(mm, 0, <uint64_t>TASK_SIZE)
    pgd_free(mm)
    mm_core_put(mm)
    quicklist_trim(mm.mmu.m, PGT_CACHE_MIN, PGT_CACHE_STEP)
    mm.state = MM_DEAD
    mm.mmu = NULL
    mutex_unlock(&mm.lock)
    return 0


# An address space that got no window has its PGD all the same.
cdef inline bint lock_live_or_stillborn(mm_struct* mm, uint64_t id) noexcept nogil:
    mutex_lock(&mm.lock)
    if mm.id == id and mm.mmu != NULL:
        return True
    mutex_unlock(&mm.lock)
    return False


# ---- software accesses ------------------------------------------------------

cdef int mm_access(mm_struct* mm, uint64_t id, uint64_t addr, void* buffer, uint64_t n,
                   bint write, uint64_t* done_ret) noexcept nogil:
    cdef uint64_t done = 0
    cdef uint64_t part
    cdef uint64_t* pte = NULL
    cdef char* frame
    cdef int rc = FAULT_OK
    if not lock_live(mm, id):
        return -ESRCH
    while done < n:
        rc = soft_pte(mm, addr + done, write, &pte)
        if rc != FAULT_OK:
            break
        part = min(n - done, PAGE_SIZE - ((addr + done) & (PAGE_SIZE - 1)))
        frame = <char*>pfn_address(mm.mmu.m, pte_pfn(pte[0])) + ((addr + done) & (PAGE_SIZE - 1))
        if write:
            memcpy(frame, <char*>buffer + done, part)
        else:
            memcpy(<char*>buffer + done, frame, part)
        done += part
    mutex_unlock(&mm.lock)
    done_ret[0] = done
    return rc


# The entry of addr once it allows the access.
cdef inline int soft_pte(mm_struct* mm, uint64_t addr, bint write,
                         uint64_t** pte_ret) noexcept nogil:
    cdef uint64_t need = PTE_PRESENT | (PTE_RW if write else 0)
    cdef uint64_t* pte = pte_offset_locked(mm, addr) if addr < <uint64_t>TASK_SIZE else NULL
    cdef int rc
    if pte == NULL or pte[0] & need != need:
        rc = handle_mm_fault_locked(mm, addr, FAULT_WRITE if write else FAULT_READ, False)
        if rc != FAULT_OK:
            return rc
        pte = pte_offset_locked(mm, addr)
    pte_ret[0] = pte
    return FAULT_OK


cdef int mm_touch(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t n, bint write,
                  uint64_t* fault_ret) noexcept nogil:
    cdef uint64_t done = 0          # counted up: addr + n may pass 2**64
    cdef uint64_t* pte = NULL
    cdef int rc = FAULT_OK
    if not lock_live(mm, id):
        return -ESRCH
    while done < n:
        rc = soft_pte(mm, addr + done, write, &pte)
        if rc != FAULT_OK:
            fault_ret[0] = addr + done
            break
        done += PAGE_SIZE - ((addr + done) & (PAGE_SIZE - 1))
    mutex_unlock(&mm.lock)
    return rc


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


cdef int64_t mm_find_pfn(mm_struct* mm, uint64_t id, uint64_t pfn, uint64_t* addr_ref,
                         uint64_t* found, int64_t n) noexcept nogil:
    cdef uint64_t addr = addr_ref[0]
    cdef uint64_t* table
    cdef uint64_t entry
    cdef int64_t count = 0
    if not lock_live(mm, id):
        return 0
    while count < n:
        table = next_table_locked(mm, &addr, <uint64_t>TASK_SIZE)
        if table == NULL:
            break
        while count < n:
            entry = table[(addr >> PAGE_SHIFT) & 511]
            if entry & PTE_PRESENT and not entry & PTE_SPECIAL and pte_pfn(entry) == pfn:
                found[count] = addr
                count += 1
            addr += PAGE_SIZE
            if addr & ((1 << PMD_SHIFT) - 1) == 0:
                break
    addr_ref[0] = addr
    mutex_unlock(&mm.lock)
    return count


cdef int mm_walk(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t* address_ret,
                 uint64_t* entry_ret) noexcept nogil:
    cdef uint64_t pfn
    cdef int level = 3
    cdef int steps = 0
    if not lock_live(mm, id):
        return -ESRCH
    pfn = mm.core.pgd_pfn
    while level >= 0:
        level = walk_step(mm.mmu, addr, level, &pfn, address_ret + steps, entry_ret + steps)
        steps += 1
    mutex_unlock(&mm.lock)
    return steps
